"""How a command ends: exit code 0 done, 1 a fault, 2 a mistake of the user, 75 stopped after a clean save."""

from __future__ import annotations

import atexit
import contextlib
import os
import platform
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_FAULT = 1
EXIT_USER = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: "try again later", as a scheduler should


class UserError(Exception):
    """A mistake of the user; exit code 2.

    Its text is one line that names the setting, file or sample, and the fix. Every rank of a run raises it, so only the
    first rank of each node prints it.
    """


class Fault(Exception):
    """A failure that the user did not cause, such as a flipped byte or a non-finite loss; one line, exit code 1."""


def run(main: Callable[[], int]) -> int:
    """Call a command's ``main`` and return the exit code.

    A :class:`UserError` or :class:`Fault` becomes one line on stderr.
    """
    try:
        code = main()
        _ignore_srun_signals()
        return code
    except (UserError, Fault) as error:
        _ignore_srun_signals()
        _print_error(error)
        return EXIT_USER if isinstance(error, UserError) else EXIT_FAULT
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe ended, as in `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _print_error(error: UserError | Fault) -> None:
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0")
    local_rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID", "0")
    if isinstance(error, Fault) or local_rank == "0":
        place = f" on rank {rank} ({platform.node()})" if rank != "0" else ""
        print(f"brain-dist: error{place}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


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
    _exit_code = run(main)
    sys.exit(_exit_code)


def _end_process() -> None:
    if _exit_code is None:
        return
    code = _exit_code
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):  # its reader ended, or it was closed
            pass
        except OSError as error:
            with contextlib.suppress(OSError):
                os.write(2, f"brain-dist: error: the output is incomplete: {error.strerror}\n".encode())
            code = code or EXIT_FAULT
    os._exit(code)


atexit.register(_end_process)  # runs last: handlers run in reverse order, and later imports register theirs after it
