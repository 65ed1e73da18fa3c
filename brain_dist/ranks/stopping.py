"""A signal to any rank, or a file in the run's folder, becomes one agreed decision of all ranks.

A handler only sets a flag; nothing is saved inside it. After each step the ranks add up their flags, in the same small
reduction that gives the step's mean loss, so all of them stop after the same step. A second signal sets the same flag
again.
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
STOP, SAVE = "STOP", "SAVE"  # files that ask for what a signal asks for, and for a save alone


@dataclass(frozen=True)
class StepResult:
    """What all ranks know after a step.

    ``loss``: mean over the global batch; ``stop``: somebody was asked to stop; ``save``: somebody was asked to save;
    ``writing``, ``lost``: some rank still writes a checkpoint, could not write it.
    """

    loss: float
    stop: bool
    save: bool
    writing: bool
    lost: bool


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.stop = False


class StepAgreement:
    """Adds up what the ranks were asked for."""

    def __init__(self, world: World, wish: StopRequest, run: Path) -> None:
        """``run``: the run's folder, in which the main rank looks for the files STOP and SAVE."""
        self.world, self.wish, self.run = world, wish, run

    def after_step(self, loss_share: torch.Tensor, *, writing: bool = False, lost: bool = False) -> StepResult:
        """Reduce this rank's share of the loss and its flags; every rank must call."""
        import torch
        import torch.distributed as dist

        stop, save = (self.world.is_main and (self.run / name).exists() for name in (STOP, SAVE))
        flags = [float(flag) for flag in (self.wish.stop or stop, save, writing, lost)]
        told = torch.cat([loss_share.reshape(1), torch.tensor(flags, device=loss_share.device)])
        if self.world.size > 1:
            dist.all_reduce(told)
        loss, *wishes = told.tolist()
        return StepResult(loss, *(wish > 0 for wish in wishes))

    def honoured(self, name: str) -> None:
        """Remove a file that was obeyed."""
        if self.world.is_main:
            (self.run / name).unlink(missing_ok=True)


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGUSR1 into a wish to stop, for the length of a block."""
    wish = StopRequest()

    def note(number: int, frame: object) -> None:
        wish.stop = True

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
