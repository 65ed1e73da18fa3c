"""Locks between processes: an advisory lock on a file, which the kernel drops with its process, however that ends."""

from __future__ import annotations

import fcntl
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

POLL = 0.1  # seconds between two tries


class Busy(Exception):
    """Another process holds the lock."""


def take_lock(path: Path, *, timeout: float = 0.0) -> IO[str]:
    """Lock the file at ``path``, which is made where there is none and stays; closing the result unlocks it.

    Args:
        path: the lock's file. Nothing is written to it.
        timeout: seconds to wait for another process to let go; ``math.inf`` waits for as long as it takes.

    Raises:
        Busy: another process still holds the lock after ``timeout``.
        OSError: the file can't be opened for writing.

    On a file system without locks the file is opened and nothing is locked.
    """
    file = path.open("a")
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.close()
                raise Busy(f"another process holds {path}") from None
            time.sleep(POLL)
        except OSError:  # this file system has no locks
            return file


@contextmanager
def locked(path: Path, *, patience: float = math.inf, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock at ``path`` for the length of a block, waiting for it as long as it takes.

    After ``patience`` seconds ``on_wait`` is called once, to say what the process is waiting for.
    """
    try:
        file = take_lock(path, timeout=patience)
    except Busy:
        if on_wait is not None:
            on_wait()
        file = take_lock(path, timeout=math.inf)
    with file:
        yield
