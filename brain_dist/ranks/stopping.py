"""Turn a signal to any rank, or a file in the run's folder, into one decision of all ranks.

Before the first step there is nothing to save, so a signal ends the process at once, with 128 + its number as exit
code: srun also sends SIGTERM when another rank has failed, and such a job must not be requeued. Afterwards a signal
only sets a flag. After each step the ranks add up their flags, in the same small reduction that gives the step's mean
loss, so all ranks save and stop after the same step. Another signal sets the same flag again, but a second Ctrl-C ends
the process.

On a GPU the sums of a step are read after the next step, so that no step waits for the device: a request takes effect
one step later there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
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
        grad_norm: what :meth:`StepAgreement.after_step` was given.
        stop: any rank was asked to stop.
        save: any rank was asked to save.
        writing: any rank is still writing a checkpoint.
        write_failed: any rank failed to write a checkpoint.
    """

    loss: float
    grad_norm: float
    stop: bool
    save: bool
    writing: bool
    write_failed: bool


class HostCopy:
    """The numbers of a tensor, copied to the host without waiting for the device.

    The tensor must not change until they are read.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        import torch

        self._tensor, self._event = tensor, None
        if tensor.is_cuda:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    @property
    def arrived(self) -> bool:
        """Whether :meth:`read` does not wait."""
        return self._event is None or self._event.query()

    def read(self) -> list[float]:
        """The numbers, in order; waits until they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor.reshape(-1).tolist()


class StepAgreement:
    """Combines the loss and the flags of all ranks after each step."""

    def __init__(self, world: World, request: StopRequest, run_folder: Path, *, delay: int = 0) -> None:
        """The main rank looks for the files STOP and SAVE in ``run_folder``.

        The result of a step is read ``delay`` steps later: 1 on a GPU, where reading it at once would wait for the
        device in each step.
        """
        self.world, self.request, self.run_folder, self.delay = world, request, run_folder, delay
        self._unread: deque[tuple[HostCopy, HostCopy]] = deque()

    def after_step(
        self,
        loss_share: torch.Tensor,
        grad_norm: torch.Tensor | None = None,
        *,
        writing: bool = False,
        write_failed: bool = False,
    ) -> list[StepResult]:
        """Sum the loss and the flags over the ranks. Every rank must call.

        Args:
            loss_share: scalar tensor, this rank's share of the mean loss.
            grad_norm: scalar tensor to read together with the sums; None: NaN.
            writing: this rank is still writing a checkpoint.
            write_failed: this rank failed to write a checkpoint.

        Returns:
            The result of the step ``delay`` steps ago, the same on all ranks; empty if there was none.
        """
        import torch
        import torch.distributed as dist

        stop, save = (self.world.is_main and (self.run_folder / name).exists() for name in (STOP, SAVE))
        flags = [float(flag) for flag in (self.request.stop or stop, save, writing, write_failed)]
        on_host = torch.tensor(flags, pin_memory=loss_share.is_cuda)
        sums = torch.cat([loss_share.reshape(1), on_host.to(loss_share.device, non_blocking=True)])
        if self.world.size > 1:
            dist.all_reduce(sums)
        norm = torch.tensor(torch.nan) if grad_norm is None else grad_norm
        self._unread.append((HostCopy(sums), HostCopy(norm)))
        return self._read(keep=self.delay)

    def finish(self) -> list[StepResult]:
        """The results that are not read yet, oldest first; waits for the device."""
        return self._read(keep=0)

    def arrived(self) -> list[StepResult]:
        """The results that can be read without waiting, oldest first. Other ranks may get more or fewer."""
        count = next((i for i, pair in enumerate(self._unread) if not all(copy.arrived for copy in pair)), None)
        return self._read(keep=0 if count is None else len(self._unread) - count)

    def _read(self, keep: int) -> list[StepResult]:
        """Read all but the newest ``keep`` results."""
        results = []
        while len(self._unread) > keep:
            sums, norm = self._unread.popleft()
            (loss, *counts), (grad_norm,) = sums.read(), norm.read()
            results.append(StepResult(loss, grad_norm, *(count > 0 for count in counts)))
            self.request.training = True
        return results

    def remove_request_file(self, name: str) -> None:
        """Remove STOP or SAVE after the request was carried out."""
        if self.world.is_main:
            (self.run_folder / name).unlink(missing_ok=True)
