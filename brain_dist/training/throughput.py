"""Training throughput in images per second, without the time of evaluations and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Throughput:
    """Counts optimiser steps and the time that they take.

    Args:
        global_batch: images per optimiser step.
    """

    def __init__(self, global_batch: int) -> None:
        self._global_batch = global_batch
        self._steps = 0
        self._start = time.perf_counter()

    def count_step(self) -> None:
        """Count one optimiser step."""
        self._steps += 1

    def restart(self) -> float:
        """Images per second since the last call (or the start); counting starts again from zero."""
        now = time.perf_counter()
        rate = self._steps * self._global_batch / (now - self._start)
        self._steps, self._start = 0, now
        return rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude a block from the measured time."""
        pause_start = time.perf_counter()
        yield
        self._start += time.perf_counter() - pause_start
