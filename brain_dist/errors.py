"""How a verb ends: 0 done, 1 a fault, 2 the user's mistake (one line, no traceback), 75 stopped after a clean save."""

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
EXIT_PREEMPTED = 75  # sysexits' EX_TEMPFAIL: "try again later", which is what a scheduler should do


_RANKS = (("RANK", "SLURM_PROCID"), ("LOCAL_RANK", "SLURM_LOCALID"))


class UserError(Exception):
    """A mistake of the user: its text is one line that names the setting, file or sample, and the mend.

    Every rank of a run meets it, so only the first one of each node says it.
    """


class Fault(Exception):
    """Something broke that is nobody's mistake (a flipped byte, a loss that is no number): one line, exit code 1."""


def _settled() -> None:
    """From here on the exit code stands: `srun --kill-on-bad-exit` ends the other ranks as soon as one has left."""
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)


_left_with: int | None = None


def leave(main: Callable[[], int]) -> NoReturn:
    """:func:`run`, and end the process with that exit code, as an entry point does.

    Once everything is written and every exit handler has run, the process ends without unloading its libraries: their
    threads (gloo's, pyarrow's) live until then, and now and then one aborts a process that is done, which a launcher
    and SLURM would take for a fault.
    """
    global _left_with
    _left_with = run(main)
    sys.exit(_left_with)


def _end() -> None:
    if _left_with is None:
        return
    code = _left_with
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):  # its reader left, or it was closed
            pass
        except OSError as error:
            with contextlib.suppress(OSError):
                os.write(2, f"brain-dist: error: what was printed is not all there: {error.strerror}\n".encode())
            code = code or EXIT_FAULT
    os._exit(code)


atexit.register(_end)  # handlers run in reverse order: what is imported after this module has its turn before


def run(main: Callable[[], int]) -> int:
    """Call a verb's ``main``; a :class:`UserError` or :class:`Fault` becomes one line on stderr and its exit code."""
    try:
        code = main()
        _settled()
        return code
    except (UserError, Fault) as error:
        _settled()
        rank, local = (os.environ.get(a) or os.environ.get(b, "0") for a, b in _RANKS)
        if isinstance(error, Fault) or local == "0":
            where = f" on rank {rank} ({platform.node()})" if rank != "0" else ""
            print(f"brain-dist: error{where}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return EXIT_USER if isinstance(error, UserError) else EXIT_FAULT
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `… | head`: the reader left; not a fault worth a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
