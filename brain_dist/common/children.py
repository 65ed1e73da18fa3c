"""Processes that a command starts: none is lost, they end with it, and their log says why they failed."""

from __future__ import annotations

import ctypes
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PR_SET_PDEATHSIG = 1  # option of prctl(2): the signal that a process gets when its parent ends
LIBC = ctypes.CDLL(None)
# The most informative lines of a log, best first: the program's own error, an exception, SLURM's error, any line
ERROR_LINES = (
    r"(brain-dist: )?error\b.*: |launch: process",
    r"(\[rank\d+\]: )?[\w.]*(Error|Exception)\b",
    r"(srun|slurmstepd|sbatch): error",
    r".",
)


def stop_with_parent(parent: int) -> None:
    """Make this process, a new child, get SIGTERM when its parent ends, even by SIGKILL."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it has ended already
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def signals_delayed() -> Iterator[None]:
    """Delay SIGINT, SIGTERM and SIGHUP until the end of the block; only in the main thread.

    A process whose number is not known yet cannot be ended. Blocking the signals would not do: Python's handlers run in
    the main thread even if another thread gets the signal.
    """
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.getsignal(number) for number in numbers}
    for number, handler in previous.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def last_error(log: Path) -> str:
    """The line of a log that describes the failure best."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()] if log.is_file() else []
    for pattern in ERROR_LINES:
        matches = [line for line in lines if re.match(pattern, line)]
        if matches:
            return matches[-1].removeprefix("brain-dist: error: ")
    return f"it ended without a message; its log is {log}"
