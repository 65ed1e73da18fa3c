"""Processes that a command starts: they end with it, and their log says why they failed."""

from __future__ import annotations

import ctypes
import os
import re
import signal
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


def last_error(log: Path) -> str:
    """The line of a log that describes the failure best."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()] if log.is_file() else []
    for pattern in ERROR_LINES:
        matches = [line for line in lines if re.match(pattern, line)]
        if matches:
            return matches[-1].removeprefix("brain-dist: error: ")
    return f"it ended without a message; its log is {log}"
