"""Rows of a scaling experiment, their Parquet file ``scaling.parquet``, and the curves over their repeats.

Times are seconds per optimiser step, memory is in bytes per rank, traffic in bytes per rank and step. Speed-up and
efficiency compare a case with the smallest number of ranks of the same repeat, so that drift between repeats cancels:
speed-up = rate / rate of the fewest ranks; efficiency = speed-up / (ranks / fewest ranks).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.common.files import write_atomically
from brain_dist.errors import UserError
from brain_dist.scalability.cases import Case
from brain_dist.scalability.traffic import Traffic

if TYPE_CHECKING:
    import pyarrow as pa

# Column suffix → stage of a profile: measured together in a step (t_…), and each alone (alone_…)
STAGES = {"waiting": "waiting for data", "forward": "forward", "backward": "backward", "optimiser": "optimiser",
          "communication": "communication", "other": "other"}  # fmt: skip
STAGES_ALONE = {"forward": "forward", "backward": "backward", "optimiser": "optimiser", "loader": "loader",
                "communication": "communication"}  # fmt: skip
KINDS = [field.name for field in fields(Traffic)]  # of collectives
PROFILE_COLUMNS = (
    "model", "zero_stage", "global_batch", "micros", "size", "precision", "device", "loader", "parameters",
    "images_per_s", "step", "measured_step", "bytes_sent", "messages", "flops_per_image", "matrix_rate", "mfu",
    "joules_per_image", "verdict", "hosts", "cores", "threads",
)  # fmt: skip
MEMORY = ("weights", "optimiser", "gradients", "peak")
MEDIANS = ("bytes_sent", "memory_optimiser", "memory_peak")  # over the repeats

TEXT_COLUMNS = ("name", "model", "mode", "precision", "device", "loader", "verdict")
INT_COLUMNS = ("nodes", "ranks", "ranks_per_node", "zero_stage", "repeat", "global_batch", "micro_batch", "micros",
               "size", "parameters", "hosts", "cores", "threads")  # fmt: skip
FLOAT_COLUMNS = (
    *("images_per_s", "step", "measured_step"),
    *(f"t_{name}" for name in STAGES),
    *(f"alone_{name}" for name in STAGES_ALONE),
    *("bytes_sent", "messages", *(f"{kind}_{unit}" for kind in KINDS for unit in ("messages", "bytes"))),
    *("memory_weights", "memory_optimiser", "memory_gradients", "memory_peak"),
    *("flops_per_image", "matrix_rate", "mfu", "joules_per_image"),
)


Row = Mapping[str, Any]


def profile_row(case: Case, profile: Mapping[str, Any]) -> dict[str, Any]:
    """One row, from the profile of a case; None for what the profile did not measure."""
    traffic = Traffic.from_counts(profile["collectives"])
    return {
        "name": case.name, "mode": case.mode, "nodes": case.nodes, "ranks_per_node": case.ranks_per_node,
        "repeat": case.repeat, "micro_batch": case.config.train.micro_batch, "ranks": profile["world"],
        **{name: profile[name] for name in PROFILE_COLUMNS},
        **{f"t_{name}": profile["together"].get(stage, 0.0) for name, stage in STAGES.items()},
        **{f"alone_{name}": profile["alone"].get(stage) for name, stage in STAGES_ALONE.items()},
        **{f"{kind}_messages": getattr(traffic, kind)[0] for kind in KINDS},
        **{f"{kind}_bytes": getattr(traffic, kind)[1] for kind in KINDS},
        **{f"memory_{name}": profile["memory"][name] for name in MEMORY},
    }  # fmt: skip


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows of a scaling.parquet, or leave the file unchanged."""
    import pyarrow as pa

    types = {
        **dict.fromkeys(TEXT_COLUMNS, pa.string()),
        **dict.fromkeys(INT_COLUMNS, pa.int64()),
        **dict.fromkeys(FLOAT_COLUMNS, pa.float64()),
    }
    write_table(path, pa.Table.from_pylist(list(rows), pa.schema(list(types.items()))))


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file, or leave it unchanged if the disk is full."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    write_atomically(path, buffer.getvalue().to_pybytes())


def read(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a scaling.parquet.

    Raises:
        UserError: the file is missing, damaged, lacks columns, or has no rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{path} does not exist; create it with `python -m brain_dist.scaling run`")
    try:
        table = pq.ParquetFile(path, pre_buffer=False).read(use_threads=False)  # as in store.index: no threads
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:  # a damaged byte can raise any of them
        raise UserError(
            f"{path} is not a valid Parquet file ({error}); run `python -m brain_dist.scaling run` again"
        ) from error
    missing = [name for name in (*TEXT_COLUMNS, *INT_COLUMNS, *FLOAT_COLUMNS) if name not in table.column_names]
    if missing:
        raise UserError(f"{path} is not the table of a scaling experiment: it lacks {', '.join(missing)}")
    if not rows:
        raise UserError(f"{path} has no rows; measure with `python -m brain_dist.scaling run`")
    return rows


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
class Curve:
    """Measurements of one model at one ZeRO stage in one mode.

    Attributes:
        mode: weak or strong.
        label: Name in plots and tables.
        repeats: Largest number of repeats of a point.
        first: A row of the curve, for what all rows share.
        points: One per number of ranks, from the fewest to the most; see :func:`_point`.
    """

    mode: str
    label: str
    repeats: int
    first: Row
    points: tuple[dict[str, Any], ...]


def measured_curves(rows: Sequence[Row]) -> list[Curve]:
    """Group rows by model, ZeRO stage and mode."""
    groups: dict[tuple[str, int, bool], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["zero_stage"], row["mode"] == "strong"), []).append(row)
    return [_curve(groups[key]) for key in sorted(groups)]


def _curve(rows: Sequence[Row]) -> Curve:
    first, fewest = rows[0], min(row["ranks"] for row in rows)
    baseline = {row["repeat"]: row["images_per_s"] for row in rows if row["ranks"] == fewest}
    by_ranks = [[row for row in rows if row["ranks"] == ranks] for ranks in sorted({row["ranks"] for row in rows})]
    points = tuple(_point(group, baseline, fewest) for group in by_ranks)
    label = f"{first['model']}, ZeRO {first['zero_stage']}"
    return Curve(first["mode"], label, max(map(len, by_ranks)), first, points)


def _point(rows: Sequence[Row], baseline: Mapping[int, float], fewest: int) -> dict[str, Any]:
    """Reduce the repeats of one number of ranks; ``baseline`` has the images/s of the ``fewest`` ranks by repeat.

    Returns:
        Numbers of a case, medians, and a :class:`Spread` each of rate [images/s], step [s], share of communication in
        the step, speed-up and efficiency (None if no repeat has a baseline).
    """
    first = rows[0]
    speedups = [row["images_per_s"] / baseline[row["repeat"]] for row in rows if row["repeat"] in baseline]
    return {
        **{name: first[name] for name in ("nodes", "ranks", "global_batch", "micro_batch", "micros")},
        "repeats": len(rows),
        "rate": Spread.of([row["images_per_s"] for row in rows]),
        "step": Spread.of([row["step"] for row in rows]),
        "communication": Spread.of([row["t_communication"] / row["measured_step"] for row in rows]),
        "speedup": Spread.of(speedups) if speedups else None,
        "efficiency": Spread.of([value * fewest / first["ranks"] for value in speedups]) if speedups else None,
        "stages": {name: statistics.median(row[f"t_{name}"] for row in rows) for name in STAGES},
        **{name: statistics.median(row[name] for row in rows) for name in MEDIANS},
    }
