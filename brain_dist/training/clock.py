"""Images a second of the training steps alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class Clock:
    """Images a second of the training steps alone, without what is paused."""

    def __init__(self, global_batch: int) -> None:
        self.global_batch, self.steps = global_batch, 0
        self.start = time.perf_counter()

    def step(self) -> None:
        """Count an optimiser step."""
        self.steps += 1

    def lap(self) -> float:
        """Rate since the last lap [images/s]."""
        now = time.perf_counter()
        rate = self.steps * self.global_batch / (now - self.start)
        self.steps, self.start = 0, now
        return rate

    def paused(self) -> Pause:
        """Leave a block out of the time."""
        return Pause(self)


class Pause:
    """Moves the clock's start by the length of the block."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.clock.start += time.perf_counter() - self.began
