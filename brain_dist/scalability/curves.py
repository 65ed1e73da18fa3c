"""Scaling curves: the rows of an experiment, reduced over their repeats.

Speed-up and efficiency compare a case with the smallest number of ranks of the same repeat, so that drift between
repeats cancels: speed-up = rate / rate of the fewest ranks; efficiency = speed-up / (ranks / fewest ranks).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brain_dist.scalability.results import STAGES

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest value over the repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Spread of some values."""
        return cls(statistics.median(values), min(values), max(values))

    def format(self, digits: int, scale: float = 1.0, unit: str = "") -> str:
        """``12.3 (12.0–12.9)``; only the median if all values are equal."""
        median, low, high = (f"{scale * value:,.{digits}f}" for value in (self.median, self.low, self.high))
        return f"{median}{unit}" if low == high else f"{median}{unit} ({low}–{high})"


@dataclass(frozen=True)
class Point:
    """One number of ranks of a curve.

    Attributes:
        nodes: Number of nodes.
        ranks: Number of ranks.
        global_batch: Images per step of all ranks.
        micro_batch: Images per micro-batch of a rank.
        micros: Micro-batches per step of a rank.
        repeats: Number of measurements.
        rate: Images/s of all ranks.
        step: Step time [s].
        speedup: None if no repeat has a baseline.
        efficiency: None if no repeat has a baseline.
        stages: Median time [s] of each of :data:`results.STAGES`.
        communication: Share of communication in the step.
        bytes_sent: Bytes that a rank sends per step.
        memory_optimiser: Memory of the optimiser's states [bytes per rank].
        memory_peak: Peak memory [bytes per rank].
    """

    nodes: int
    ranks: int
    global_batch: int
    micro_batch: int
    micros: int
    repeats: int
    rate: Spread
    step: Spread
    speedup: Spread | None
    efficiency: Spread | None
    stages: dict[str, float]
    communication: Spread
    bytes_sent: float
    memory_optimiser: float
    memory_peak: float


@dataclass(frozen=True)
class Curve:
    """Measurements of one model at one ZeRO stage in one mode, from the fewest ranks to the most."""

    model: str
    mode: str
    zero_stage: int
    size: int
    precision: str
    device: str
    loader: str
    points: tuple[Point, ...]

    @property
    def label(self) -> str:
        """Label of the curve in plots and tables."""
        return f"{self.model}, ZeRO {self.zero_stage}"

    @property
    def repeats(self) -> int:
        """Largest number of repeats of a point."""
        return max(point.repeats for point in self.points)


def measured_curves(rows: Sequence[Row]) -> list[Curve]:
    """Group rows by model, ZeRO stage and mode."""
    groups: dict[tuple[str, int, bool], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["zero_stage"], row["mode"] == "strong"), []).append(row)
    return [_curve(groups[key]) for key in sorted(groups)]


def _curve(rows: Sequence[Row]) -> Curve:
    rank_counts = sorted({row["ranks"] for row in rows})
    baseline = {row["repeat"]: row["images_per_s"] for row in rows if row["ranks"] == rank_counts[0]}
    points = [_point([row for row in rows if row["ranks"] == ranks], baseline, rank_counts[0]) for ranks in rank_counts]
    names = ("model", "mode", "zero_stage", "size", "precision", "device", "loader")
    return Curve(**{name: rows[0][name] for name in names}, points=tuple(points))


def _point(rows: Sequence[Row], baseline: Mapping[int, float], fewest_ranks: int) -> Point:
    """Reduce the repeats of one number of ranks; ``baseline`` has the images/s of the fewest ranks by repeat."""
    first = rows[0]
    speedups = [row["images_per_s"] / baseline[row["repeat"]] for row in rows if row["repeat"] in baseline]
    efficiencies = [speedup * fewest_ranks / first["ranks"] for speedup in speedups]

    def median(name: str) -> float:
        return statistics.median(row[name] for row in rows)

    return Point(
        **{name: first[name] for name in ("nodes", "ranks", "global_batch", "micro_batch", "micros")},
        repeats=len(rows),
        rate=Spread.of([row["images_per_s"] for row in rows]),
        step=Spread.of([row["step"] for row in rows]),
        speedup=Spread.of(speedups) if speedups else None,
        efficiency=Spread.of(efficiencies) if efficiencies else None,
        stages={name: median(f"t_{name}") for name in STAGES},
        communication=Spread.of([row["t_communication"] / row["measured_step"] for row in rows]),
        bytes_sent=median("bytes_sent"),
        memory_optimiser=median("memory_optimiser"),
        memory_peak=median("memory_peak"),
    )
