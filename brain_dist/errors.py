"""How a command starts and ends: exit code 0 done, 1 a fault, 2 a user's mistake, 75 stopped after a clean save."""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import platform
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

EXIT_FAULT = 1
EXIT_USER = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: "try again later", as a scheduler should
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as in a shell
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)


class UserError(Exception):
    """A mistake of the user; exit code 2.

    Its text is one line that names the setting, file or sample, and the fix. Every rank of a run raises it, so only the
    first rank of each node prints it.
    """


class Fault(Exception):
    """A failure that the user did not cause, such as a flipped byte or a non-finite loss; one line, exit code 1."""


def run(main: Callable[[], int]) -> int:
    """Call a command's ``main`` and return the exit code.

    A :class:`UserError`, a :class:`Fault`, a place that may not be used or Ctrl-C becomes one line on stderr.
    """
    try:
        code = _call(main)
        _ignore_srun_signals()
        return code
    except (UserError, Fault) as error:
        _ignore_srun_signals()
        rank, is_first_of_node = _rank()
        if isinstance(error, Fault) or is_first_of_node:
            place = f" on rank {rank} ({platform.node()})" if rank != "0" else ""
            print(f"brain-dist: error{place}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return EXIT_USER if isinstance(error, UserError) else EXIT_FAULT
    except KeyboardInterrupt:
        if _rank()[1]:
            print("brain-dist: interrupted before the end; run the same command again", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED


def _call(main: Callable[[], int]) -> int:
    """Call ``main``; raise a UserError for a path without permission, wherever the program meets it."""
    try:
        return main()
    except OSError as error:
        if error.errno not in _REFUSALS or not isinstance(error.filename, (str, bytes)):
            raise
        kind = UserError if _rank()[1] else Fault  # a UserError of other ranks is not printed
        raise kind(f"{os.fsdecode(error.filename)}: {error.strerror}; correct the path or its permissions") from error


def print_once(text: str) -> None:
    """Print a line on stderr, on the first rank only."""
    if _rank()[0] == "0":
        print(f"brain-dist: {text}", file=sys.stderr, flush=True)


def _rank() -> tuple[str, bool]:
    """The number of this process, from the launcher's environment, and whether it is the first on its node."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0")
    return rank, (os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID", "0")) == "0"


def _ignore_srun_signals() -> None:
    """Keep the exit code: `srun --kill-on-bad-exit` signals the other ranks as soon as one has ended."""
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)


_exit_code: int | None = None


def leave(main: Callable[[], int]) -> NoReturn:
    """:func:`run`, and end the process with the exit code, as an entry point does.

    After all output is written and every exit handler has run, the process ends without unloading its libraries. Their
    threads (gloo's, pyarrow's) are still running then, and sometimes one aborts the finished process, which a launcher
    and SLURM would take for a fault.
    """
    global _exit_code
    _require_utf8()
    _secure_output()
    _exit_code = run(main)
    _end_workers()
    sys.exit(_exit_code)


def _require_utf8() -> None:
    """Restart Python in UTF-8 mode if the locale has another encoding: names and files mean the same everywhere."""
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _end_workers() -> None:
    """End worker processes that still run after an error; multiprocessing would wait for those that block SIGTERM."""
    multiprocessing = sys.modules.get("multiprocessing.process")
    if multiprocessing:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise an error about them
        for child in multiprocessing.active_children():
            child.kill()


class _Output(io.FileIO):
    """A standard stream that cannot fail: a command's work is worth more than what it prints.

    Attributes:
        problem: why something was not printed; None if all was, or if nobody reads it any more.
    """

    problem: str | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # the reader, or the terminal, is gone
                self.problem = self.problem or error.strerror
            return memoryview(data).nbytes


_outputs: list[_Output] = []


def _secure_output() -> None:
    """Make standard output and standard error two :class:`_Output`, and open what the parent process closed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # otherwise the next file that is opened would get this number, and what libraries print
            os.open(os.devnull, os.O_RDWR)
    for descriptor, name, errors in ((1, "stdout", "surrogateescape"), (2, "stderr", "backslashreplace")):
        raw, stream = _Output(descriptor, "w", closefd=False), getattr(sys, name)
        _outputs.append(raw)
        with contextlib.suppress(OSError, AttributeError):
            stream.flush()
        unbuffered = getattr(stream, "write_through", False)
        buffer: Any = raw if unbuffered else io.BufferedWriter(raw)
        lines = descriptor == 2 or raw.isatty()
        new = io.TextIOWrapper(buffer, "utf-8", errors, line_buffering=lines, write_through=unbuffered)
        setattr(sys, name, new)


def _end_process() -> None:
    if _exit_code is None:
        return
    code = _exit_code
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):  # it was closed
            stream.flush()
    problem = next((output.problem for output in _outputs if output.problem), None)
    if problem:
        with contextlib.suppress(OSError):
            os.write(2, f"brain-dist: error: the output is incomplete: {problem}\n".encode())
        code = code or EXIT_FAULT
    os._exit(code)


atexit.register(_end_process)  # runs last: handlers run in reverse order, and later imports register theirs after it
