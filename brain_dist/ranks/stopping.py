"""Turn a signal to any rank, or a file in the run's folder, into one decision of all ranks.

Before the first step there is nothing to save, so a signal ends the process at once, with 128 + its number as exit
code: srun also sends SIGTERM when another rank has failed, and such a job must not be requeued. Afterwards a signal
only sets a flag. After each step the ranks add up their flags, in the same small reduction that gives the step's mean
loss, so all ranks save and stop after the same step. Another signal sets the same flag again, but a second Ctrl-C ends
the process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brain_dist.errors import EXIT_INTERRUPTED

if TYPE_CHECKING:
    import torch

    from brain_dist.ranks.world import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
STOP, SAVE = "STOP", "SAVE"  # request files: save and stop, as a signal asks; only save


class StopRequest:
    """Whether this process received a stop signal.

    Attributes:
        stop: True once a signal arrived.
        training: whether the first step is done, so that a stop request saves.
        saved_step: returns the step of the newest checkpoint, from which the same command resumes.
    """

    def __init__(self) -> None:
        self.stop = self.training = self._interrupted = False
        self.saved_step: Callable[[], int] = lambda: 0

    def _receive(self, number: int) -> None:
        """Act on a signal; called in a thread, as the main thread may be waiting for other ranks in a library."""
        if not self.training:
            _end(128 + number, "stop requested before the first step; run the same command to start again")
        if number == signal.SIGINT and self._interrupted:
            _end(EXIT_INTERRUPTED, f"ended without a save; the same command resumes at step {self.saved_step()}")
        if number == signal.SIGINT:
            self._interrupted = True
            _print_line("saving after this step; press Ctrl-C again to end at once")


def _print_line(text: str) -> None:
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        show_cursor = "\r\033[?25h\033[K" if sys.stderr.isatty() else ""  # a progress bar hides it
        os.write(2, f"{show_cursor}brain-dist: {text}\n".encode())


def _end(code: int, text: str) -> None:
    try:
        _print_line(text)
    finally:
        os._exit(code)


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Record SIGTERM, SIGUSR1, SIGHUP and Ctrl-C in a :class:`StopRequest` for the length of a block.

    A signal that is already ignored, as SIGHUP is under nohup, stays ignored.
    """
    request = StopRequest()
    numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def receive() -> None:
        while data := os.read(reader, 1):
            if data[0] in numbers:
                request._receive(data[0])
        os.close(reader)

    def record(number: int, frame: object) -> None:
        request.stop = True

    threading.Thread(target=receive, name="signals", daemon=True).start()
    handlers = {number: signal.signal(number, record) for number in numbers}
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # its signals are not this process's
    try:
        yield request
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writer)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class StepResult:
    """What all ranks agreed on after a step.

    Attributes:
        loss: mean over the global batch.
        stop: any rank was asked to stop.
        save: any rank was asked to save.
        writing: any rank is still writing a checkpoint.
        write_failed: any rank failed to write a checkpoint.
    """

    loss: float
    stop: bool
    save: bool
    writing: bool
    write_failed: bool


class StepAgreement:
    """Combines the loss and the flags of all ranks after each step."""

    def __init__(self, world: World, request: StopRequest, run_folder: Path) -> None:
        """The main rank looks for the files STOP and SAVE in ``run_folder``."""
        self.world, self.request, self.run_folder = world, request, run_folder

    def after_step(self, loss_share: torch.Tensor, *, writing: bool = False, write_failed: bool = False) -> StepResult:
        """Sum the loss and the flags over the ranks. Every rank must call.

        Args:
            loss_share: scalar tensor, this rank's share of the mean loss.
            writing: this rank is still writing a checkpoint.
            write_failed: this rank failed to write a checkpoint.
        """
        import torch
        import torch.distributed as dist

        stop, save = (self.world.is_main and (self.run_folder / name).exists() for name in (STOP, SAVE))
        flags = [float(flag) for flag in (self.request.stop or stop, save, writing, write_failed)]
        sums = torch.cat([loss_share.reshape(1), torch.tensor(flags, device=loss_share.device)])
        if self.world.size > 1:
            dist.all_reduce(sums)
        loss, *counts = sums.tolist()
        self.request.training = True
        return StepResult(loss, *(count > 0 for count in counts))

    def remove_request_file(self, name: str) -> None:
        """Remove STOP or SAVE after the request was carried out."""
        if self.world.is_main:
            (self.run_folder / name).unlink(missing_ok=True)
