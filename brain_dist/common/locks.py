"""Locks between processes: an advisory lock on a file. The kernel releases it when the process ends."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_POLL = 0.1  # seconds between two attempts


class Busy(Exception):
    """Another process holds the lock."""


def take_lock(path: Path, *, timeout: float = 0.0, required: bool = True) -> IO[str]:
    """Lock a file, which is created if it does not exist. Closing the result releases the lock; the file stays.

    Args:
        path: the lock file. Nothing is written to it.
        timeout: seconds to wait for another process to release the lock; ``math.inf`` waits forever.
        required: False continues without a lock on a file system that does not support locks.

    Raises:
        Busy: another process still holds the lock after ``timeout``.
        OSError: the file is not writable or a symbolic link, or its file system does not support locks.
    """
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.close()
                raise Busy(f"another process holds {path}") from None
            time.sleep(_POLL)
        except OSError:
            if not required:
                return file
            file.close()
            raise


@contextmanager
def locked(path: Path, *, patience: float = math.inf, on_wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock on ``path`` during a ``with`` block, after waiting for it as long as necessary.

    Yields whether the lock is held: False on a file system without locks, such as Lustre mounted without ``flock``.

    Args:
        path: the lock file.
        patience: seconds of waiting after which ``on_wait`` is called, once.
        on_wait: tells the user what the process waits for.
    """
    try:
        file = take_lock(path, timeout=patience)
    except Busy:
        if on_wait is not None:
            on_wait()
        file = take_lock(path, timeout=math.inf)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        yield False
        return
    with file:
        yield True
