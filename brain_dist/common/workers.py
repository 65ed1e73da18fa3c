"""Worker processes for images: results in order, no orphans if the parent is killed."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from typing import Any, TypeVar

from brain_dist.common.cores import cpu_cores
from brain_dist.errors import UserError

_MAX_SOCKET_FOLDER = 60  # bytes; multiprocessing appends about 35
Item = TypeVar("Item")
Result = TypeVar("Result")
Run = Callable[[Callable[[Any], Any], Sequence[Any], int], Iterator[Any]]


@contextmanager
def worker_pool(workers: int) -> Iterator[Run]:
    """Yield ``run(function, items, chunk_size)``, which iterates over the results in the order of ``items``.

    With one worker, this process does the work. Otherwise the workers are forked from a server process, which is safe
    if the caller has threads, and which imports the image libraries once for all workers. The server starts at once, in
    parallel with what the caller does next.

    Raises:
        UserError: a worker process cannot be started, or was killed.
    """
    if workers <= 1:
        use_one_opencv_thread()
        yield lambda function, items, chunk_size: map(function, items)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["brain_dist.collection.examination"])
    start_worker_server()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_pool_worker) as pool:
        try:
            yield lambda function, items, chunk_size: _results(pool, pool.map(function, items, chunksize=chunk_size))
        except BrokenProcessPool:
            raise UserError("a worker process was killed (out of memory?); use fewer --workers") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _results(pool: ProcessPoolExecutor, results: Iterator[Result]) -> Iterator[Result]:
    """The results; an error is raised when all workers have stopped, so that none writes while the caller cleans up."""
    try:
        yield from results
    except (Exception, KeyboardInterrupt):
        pool.shutdown(cancel_futures=True)
        raise


def start_worker_server() -> None:
    """Start the process from which worker processes are forked, unless it runs.

    It and its workers get no signals that ask a run to stop: a rank that saves first still needs them.

    Raises:
        UserError: $TMPDIR is not writable.
    """
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
    try:
        _choose_socket_folder()
        resource_tracker.ensure_running()  # otherwise started with the server, where it would unblock signals
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"worker processes cannot be started ({reason}); set TMPDIR to a writable folder") from None


def _choose_socket_folder() -> None:
    """Let multiprocessing create its sockets in /tmp if $TMPDIR is too long for the 108 bytes of a socket's path."""
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > _MAX_SOCKET_FOLDER:
        tempfile.tempdir = "/tmp"
        try:
            multiprocessing.util.get_temp_dir()  # chosen once per process
        finally:
            tempfile.tempdir = folder


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """``function`` of each item, in order, in one thread per core; for NumPy, which releases the GIL.

    NumPy's own threads are limited to one meanwhile: one core per item is faster than many cores per small product.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), ThreadPoolExecutor(cpu_cores()) as pool:
        yield from pool.map(function, items)


def use_one_opencv_thread() -> None:
    """Keep OpenCV from threads of its own, whether this process has imported it already or imports it later.

    Threads or processes divide the images, so that more threads an image would only compete for the cores.
    """
    if (cv2 := sys.modules.get("cv2")) is not None:
        cv2.setNumThreads(1)
    else:
        os.environ["OPENCV_FOR_THREADS_NUM"] = "1"  # OpenCV reads it when it is imported


def _start_pool_worker() -> None:
    use_one_opencv_thread()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # a pool that lost a worker ends the others by it
    exit_with_parent()


def exit_with_parent(*_: object) -> None:
    """Make this worker process end when the process that uses it ends, even by SIGKILL."""
    # A worker waits for items on a pipe that it also holds the other end of. If the parent is killed, it would wait
    # forever, or go on writing into a folder that the next build removes.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
