"""Worker processes for the image work: results in order, no orphans when the parent is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import wait
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Run = Callable[[Callable[[Any], Any], Sequence[Any], int], Iterator[Any]]


@contextmanager
def worker_pool(workers: int) -> Iterator[Run]:
    """Gives ``run(function, items, chunk)``: an iterator of results in the order of ``items``.

    With one worker the work is done in this process. The others are forked off a server that has loaded what the image
    work needs and nothing else: the caller may have threads, and loading once is faster than in each process. The
    server starts at once, beside what the caller does next.
    """
    if workers <= 1:
        yield lambda function, items, chunk: map(function, items)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["brain_dist.collection.examination"])
    forkserver.ensure_running()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent) as pool:
        try:
            yield lambda function, items, chunk: pool.map(function, items, chunksize=chunk)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """``function`` of each item, in order, on all cores: for NumPy, which lets go of Python's lock.

    Its own threads are held to one meanwhile: a core works faster alone than at the barriers of many small products.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(function, items)


def _die_with_parent() -> None:
    # An executor's workers wait for work on a pipe whose other end they hold themselves: nothing wakes them when the
    # parent is killed, and they would write into a folder that the next build is clearing.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle, once
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
