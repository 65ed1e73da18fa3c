"""What a scaling experiment found: rows, their Parquet file, and what the table and the plot tell of them.

Times are seconds an optimiser step, memory bytes a rank, traffic bytes a rank and step. Speed-up and efficiency compare
a case with the fewest ranks of the same repeat, so that what drifts from repeat to repeat cancels:
speed-up = rate / rate of the fewest ranks; efficiency = speed-up / (ranks / fewest ranks).
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from brain_dist.errors import UserError
from brain_dist.scalability.cases import Case
from brain_dist.scalability.cost import Traffic

TOGETHER = {"waiting": "waiting for data", "forward": "forward", "backward": "backward", "optimiser": "optimiser",
            "communication": "communication", "other": "other"}  # fmt: skip
ALONE = {"forward": "forward", "backward": "backward", "optimiser": "optimiser", "loader": "loader",
         "communication": "communication"}  # fmt: skip
RATES = ("nodes", "ranks", "batch = micro × accumulated × ranks", "images/s", "speed-up", "efficiency", "step, ms",
         "communication", "sent, MB a step", "optimiser, MB a rank", "peak, MB a rank")  # fmt: skip
SHOWN = ("nodes", "ranks", "images/s", "speed-up", "efficiency", "step, ms", "communication", "peak, MB a rank")
KINDS = [field.name for field in fields(Traffic)]  # of collectives
TEXT = ("name", "model", "mode", "precision", "device", "loader", "verdict")
WHOLE = ("nodes", "ranks", "ranks_per_node", "zero_stage", "repeat", "global_batch", "micro_batch", "micros", "size",
         "parameters", "hosts", "cores", "threads")  # fmt: skip
REAL = (
    *("images_per_s", "step", "measured_step"),
    *(f"t_{name}" for name in TOGETHER),
    *(f"alone_{name}" for name in ALONE),
    *("bytes_sent", "messages", *(f"{kind}_{what}" for kind in KINDS for what in ("messages", "bytes"))),
    *("memory_weights", "memory_optimiser", "memory_gradients", "memory_peak"),
    *("flops_per_image", "matrix_rate", "mfu", "joules_per_image"),
)


def row(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    """One row of the Parquet file, from what the case's profile holds; null for what it does not."""
    same = ("model", "zero_stage", "global_batch", "micros", "size", "precision", "device", "loader", "parameters",
            "images_per_s", "step", "measured_step", "bytes_sent", "messages", "flops_per_image", "matrix_rate", "mfu",
            "joules_per_image", "verdict", "hosts", "cores", "threads")  # fmt: skip
    sent = Traffic.of(found["collectives"])
    return {
        "name": case.name, "mode": case.mode, "nodes": case.nodes, "ranks_per_node": case.ranks_per_node,
        "repeat": case.repeat, "micro_batch": case.config.train.micro_batch, "ranks": found["world"],
        **{name: found[name] for name in same},
        **{f"t_{name}": found["together"].get(stage, 0.0) for name, stage in TOGETHER.items()},
        **{f"alone_{name}": found["alone"].get(stage) for name, stage in ALONE.items()},
        **{f"{kind}_messages": getattr(sent, kind)[0] for kind in KINDS},
        **{f"{kind}_bytes": getattr(sent, kind)[1] for kind in KINDS},
        **{f"memory_{name}": found["memory"][name] for name in ("weights", "optimiser", "gradients", "peak")},
    }  # fmt: skip


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """All rows, or the file as it was."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {
        **dict.fromkeys(TEXT, pa.string()),
        **dict.fromkeys(WHOLE, pa.int64()),
        **dict.fromkeys(REAL, pa.float64()),
    }
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        pq.write_table(pa.Table.from_pylist(list(rows), pa.schema(list(kinds.items()))), part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a scaling.parquet, at least one; UserError if it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{path} is not there: make it with `python -m brain_dist.scaling run`")
    try:
        table = pq.ParquetFile(path, pre_buffer=False).read(use_threads=False)  # as in data.index: no threads
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:  # a flipped byte may show as any of them
        raise UserError(f"{path} is no Parquet file ({error}): make it again") from error
    lacking = [name for name in (*TEXT, *WHOLE, *REAL) if name not in table.column_names]
    if lacking:
        raise UserError(f"{path} is no table of a scaling experiment: it lacks {', '.join(lacking)}")
    if not rows:
        raise UserError(f"{path} has no row: measure with `python -m brain_dist.scaling run`")
    return rows


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest over the repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def show(self, digits: int, scale: float = 1.0, unit: str = "") -> str:
        """``12.3 (12.0–12.9)``; of one value only that."""
        median, low, high = (f"{scale * value:,.{digits}f}" for value in (self.median, self.low, self.high))
        return f"{median}{unit}" if low == high else f"{median}{unit} ({low}–{high})"


@dataclass(frozen=True)
class Point:
    """One number of ranks of one curve. ``speedup`` and ``efficiency`` are None where its repeats lack a base."""

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
    """One model at one ZeRO stage under one mode, from the fewest ranks to the most."""

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
        return f"{self.model}, ZeRO {self.zero_stage}"


def curves(rows: Sequence[dict[str, Any]]) -> list[Curve]:
    """The rows, gathered and reduced over their repeats."""
    made = []
    order = sorted({(r["model"], r["zero_stage"], r["mode"] == "strong") for r in rows})
    for model, stage, strong in order:
        mode = "strong" if strong else "weak"
        own = [r for r in rows if (r["model"], r["zero_stage"], r["mode"]) == (model, stage, mode)]
        fewest = min(r["ranks"] for r in own)
        base = {r["repeat"]: r["images_per_s"] for r in own if r["ranks"] == fewest}
        points = [
            _point([r for r in own if r["ranks"] == ranks], base, fewest) for ranks in sorted({r["ranks"] for r in own})
        ]
        one = own[0]
        kind = (one["size"], one["precision"], one["device"], one["loader"])
        made.append(Curve(model, mode, stage, *kind, tuple(points)))
    return made


def _point(rows: Sequence[dict[str, Any]], base: dict[int, float], fewest: int) -> Point:
    one = rows[0]
    gains = [r["images_per_s"] / base[r["repeat"]] for r in rows if r["repeat"] in base]
    shares = [r["t_communication"] / r["measured_step"] for r in rows]

    def median(name: str) -> float:
        return statistics.median(r[name] for r in rows)

    return Point(
        nodes=one["nodes"], ranks=one["ranks"], global_batch=one["global_batch"], micro_batch=one["micro_batch"],
        micros=one["micros"], repeats=len(rows),
        rate=Spread.of([r["images_per_s"] for r in rows]), step=Spread.of([r["step"] for r in rows]),
        speedup=Spread.of(gains) if gains else None,
        efficiency=Spread.of([gain * fewest / one["ranks"] for gain in gains]) if gains else None,
        stages={name: median(f"t_{name}") for name in TOGETHER},
        communication=Spread.of(shares), bytes_sent=median("bytes_sent"),
        memory_optimiser=median("memory_optimiser"), memory_peak=median("memory_peak"),
    )  # fmt: skip


def markdown(found: Sequence[Curve], *, command: str, note: str, plot: str, failed: dict[str, str]) -> str:
    """The page: what was run where, the picture ``plot``, two tables a curve, what failed (case → its last error)."""
    parts = ["# Scaling", f"```\n{command}\n```", note]
    if found:
        parts.append(f"![speed-up against the ideal, and where a step's time goes]({plot})")
        parts.append(
            "Median over the repeats, smallest and largest in parentheses. Speed-up and efficiency are against the"
            " fewest ranks of the same repeat. The second table and the share of communication are measured with every"
            " stage waited for, which costs a little and lets nothing overlap; waiting for a slower rank counts as"
            " communication."
        )
    for curve in found:
        most = max(point.repeats for point in curve.points)
        parts.append(
            f"## {curve.mode.capitalize()} scaling: {curve.label}\n{curve.size}², {curve.precision}, {curve.device},"
            f" loader {curve.loader}, {most} repeat{'s' if most > 1 else ''}"
        )
        parts.append(_table(RATES, [_rates(point, most) for point in curve.points]))
        stages = [f"{stage}, ms" for stage in TOGETHER.values()]
        parts.append(_table(("ranks", *stages, "sum, ms"), [_breakdown(point) for point in curve.points]))
    if failed:
        parts.append("## Failed\n" + "\n".join(f"- {name}: {said}" for name, said in failed.items()))
    return "\n\n".join(parts) + "\n"


def _rates(point: Point, most: int) -> tuple[str, ...]:
    short = f" [{point.repeats} of {most} repeats]" if point.repeats < most else ""
    return (
        str(point.nodes), str(point.ranks),
        f"{point.global_batch} = {point.micro_batch} × {point.micros} × {point.ranks}", point.rate.show(1) + short,
        point.speedup.show(2) if point.speedup else "no base",
        point.efficiency.show(0, 100, " %") if point.efficiency else "no base",
        point.step.show(1, 1e3), point.communication.show(0, 100, " %"), f"{point.bytes_sent / 1e6:,.1f}",
        f"{point.memory_optimiser / 1e6:,.1f}", f"{point.memory_peak / 1e6:,.0f}",
    )  # fmt: skip


def _breakdown(point: Point) -> tuple[str, ...]:
    total = sum(point.stages.values())
    return (
        str(point.ranks),
        *(f"{1e3 * s:.1f} ({100 * s / total:.0f} %)" for s in point.stages.values()),
        f"{1e3 * total:.1f}",
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head), *(f"| {' | '.join(r)} |" for r in rows)]
    )


def show(found: Sequence[Curve]) -> None:
    """The first table of every curve, for a person at a terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    for curve in found:
        made = Table(title=f"{curve.mode} scaling: {curve.label}, {curve.device}", title_justify="left")
        most = max(point.repeats for point in curve.points)
        for name in SHOWN:
            made.add_column(name, justify="right", no_wrap=True)
        for point in curve.points:
            cells = dict(zip(RATES, _rates(point, most), strict=True))
            made.add_row(*(cells[name] for name in SHOWN))
        console.print(made)
