"""Turn a signal to any rank, or a file in the run's folder, into one decision of all ranks.

A signal handler only sets a flag; it saves nothing itself. After each step the ranks add up their flags, in the same
small reduction that gives the step's mean loss, so all ranks stop after the same step. A second signal sets the same
flag again.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from brain_dist.ranks.world import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOP, SAVE = "STOP", "SAVE"  # request files: save and stop, as a signal asks; only save


class StopRequest:
    """Whether this process received a stop signal.

    Attributes:
        stop: True once a signal arrived.
    """

    def __init__(self) -> None:
        self.stop = False


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Record SIGTERM and SIGUSR1 in a :class:`StopRequest` for the length of a block."""
    request = StopRequest()

    def record(number: int, frame: object) -> None:
        request.stop = True

    handlers = {number: signal.signal(number, record) for number in SIGNALS}
    try:
        yield request
    finally:
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
        return StepResult(loss, *(count > 0 for count in counts))

    def remove_request_file(self, name: str) -> None:
        """Remove STOP or SAVE after the request was carried out."""
        if self.world.is_main:
            (self.run_folder / name).unlink(missing_ok=True)
