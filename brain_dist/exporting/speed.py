"""How long models take for a batch, measured in turns, so that what else the machine does meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 3  # rounds


@dataclass(frozen=True)
class Speed:
    """What one batch takes.

    Attributes:
        batch: images.
        rounds: how often it was measured.
        median: wall-clock seconds.
        p95: 95th percentile of the wall-clock seconds.
        cpu: median of the processor seconds of all threads of this process.
    """

    batch: int
    rounds: int
    median: float
    p95: float
    cpu: float

    @property
    def per_image(self) -> float:
        """Wall-clock seconds per image."""
        return self.median / self.batch


def measure(
    models: Mapping[str, Callable[[np.ndarray], object]], pixels: np.ndarray, batches: Sequence[int], *, rounds: int,
    seconds: float,
) -> dict[str, list[Speed]]:  # fmt: skip
    """Measure each model with each batch size, one after the other in every round.

    Args:
        models: name → what computes the outputs of images uint8 [B, C, S, S], and returns when they are there.
        pixels: uint8 [N, C, S, S]; repeated if a batch is larger.
        batches: numbers of images.
        rounds: at most so many.
        seconds: no round begins after so many seconds, but for the first three.

    Returns:
        Name → its :class:`Speed` for each of ``batches``.
    """
    inputs = {batch: np.resize(pixels, (batch, *pixels.shape[1:])) for batch in batches}
    wall: dict[tuple[str, int], list[float]] = {(name, batch): [] for name in models for batch in batches}
    cpu: dict[tuple[str, int], list[float]] = {key: [] for key in wall}
    deadline = time.monotonic() + seconds
    for name, batch in wall:
        models[name](inputs[batch])  # prepares its memory
    for number in range(rounds):
        if number >= FEWEST and time.monotonic() > deadline:
            break
        for key in wall:
            name, batch = key
            start, start_cpu = time.perf_counter(), time.process_time()
            models[name](inputs[batch])
            wall[key].append(time.perf_counter() - start)
            cpu[key].append(time.process_time() - start_cpu)

    def speed(name: str, batch: int) -> Speed:
        values = wall[name, batch]
        median, p95 = np.median(values), np.quantile(values, 0.95)
        return Speed(batch, len(values), float(median), float(p95), float(np.median(cpu[name, batch])))

    return {name: [speed(name, batch) for batch in batches] for name in models}
