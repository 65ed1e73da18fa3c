"""A signal to any rank becomes one agreed decision of all ranks.

A handler only sets a flag; nothing is saved inside it. After each step the ranks add up their flags, in the same small
reduction that gives the step's mean loss, so all of them stop after the same step.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from brain_dist.dist import World

if TYPE_CHECKING:
    import torch

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Agreement:
    """Whether this rank was asked to stop, and the way to ask the others."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.asked = False

    def after_step(self, loss_share: torch.Tensor) -> tuple[float, bool]:
        """Mean loss over all ranks, and whether any of them was asked to stop; every rank must call."""
        import torch
        import torch.distributed as dist

        both = torch.stack([loss_share, torch.full_like(loss_share, float(self.asked))])
        if self.world.size > 1:
            dist.all_reduce(both)
        loss, wishes = both.tolist()
        return loss, wishes > 0


@contextmanager
def listening(world: World) -> Iterator[Agreement]:
    """Turn SIGTERM and SIGUSR1 into a wish to stop, for the length of a block."""
    agreement = Agreement(world)

    def note(number: int, frame: object) -> None:
        agreement.asked = True

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield agreement
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
