"""The report of a prediction: the fit, its error, the tables, the assumptions, the plot."""

from __future__ import annotations

import math
import statistics
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.errors import UserError
from brain_dist.scalability.cost import CostModel, MeasuredStep
from brain_dist.scalability.cost_fit import HeldBack
from brain_dist.scalability.machines import Machine
from brain_dist.scalability.results import write_table

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("nodes", "ranks", "batch", "images/s", "speed-up", "efficiency", "step, ms", "communication", "memory")


def report(
    rows: Sequence[dict[str, Any]],
    measured: Sequence[MeasuredStep],
    fitted: CostModel,
    held_back: HeldBack,
    machine: Machine,
    folder: Path,
) -> None:
    """Print a prediction; write predict.parquet and predict.png.

    Args:
        rows: Rows of predict.parquet.
        measured: Measurements that the model was fitted to.
        fitted: The fitted cost model.
        held_back: Predictions of measurements that were held back.
        machine: The machine that is predicted.
        folder: Folder of the files.

    Raises:
        UserError: the folder cannot be written to.
    """
    import pyarrow as pa
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120)
    quality = error_line(held_back)
    for line in [*fit_lines(measured, fitted), quality]:
        console.print(line, highlight=False, markup=False)
    for name in dict.fromkeys(row["curve"] for row in rows):
        curve = [row for row in rows if row["curve"] == name]
        console.print(_table(f"{name}; extrapolated to {machine.name}", curve))
    for line in assumptions(machine, measured):
        console.print(line, highlight=False, markup=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_table(folder / "predict.parquet", pa.Table.from_pylist(list(rows)))
        draw(rows, machine.name, quality, folder / "predict.png")
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}; choose another folder") from None
    print(f"wrote {folder}/predict.parquet, {folder}/predict.png")


def _table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['nodes']}", f"{row['ranks']:,}", f"{row['global_batch']:,}", f"{row['images_per_s']:,.0f}",
            f"{row['speedup']:.2f}", f"{row['efficiency']:.0%}", f"{1e3 * row['step']:,.2f}",
            f"{(row['exposed'] + row['waiting']) / row['step']:.0%}", f"{row['memory_states'] / 1e6:,.1f} MB",
        )  # fmt: skip
    return table


def fit_lines(measured: Sequence[MeasuredStep], fitted: CostModel) -> list[str]:
    """The fitted coefficients as text."""
    ranks = sorted({step.case.ranks for step in measured})
    lines = [f"fitted to {len(measured)} measurements on {', '.join(map(str, ranks))} ranks:"]
    for (model, size, precision, stage), compute in fitted.compute.items():
        lines += [
            f"  {model} {size}² {precision}, ZeRO {stage}:",
            f"    {1e3 * compute.fixed:.2f} ms a micro-batch + {1e3 * compute.per_image:.3f} ms an image, optimiser"
            f" {1e3 * compute.per_step:.2f} ms + {1e9 * compute.per_parameter:.2f} ms a million parameters",
        ]
    for name, link in (("inside a machine", fitted.link), ("between machines", fitted.network)):
        if link is not None:
            limit = f"{link.bandwidth / 1e6:,.0f} MB/s" if math.isfinite(link.bandwidth) else "not a limit"
            lines.append(f"  link {name}: α {1e6 * link.latency:,.0f} µs a hop, β {limit}")
    if any(step.case.ranks > 1 for step in measured):
        lines.append(f"  waiting for the slower rank: {fitted.waiting:.1%} of forward and backward")
    return lines


def error_line(held_back: HeldBack) -> str:
    """The error on held-back measurements as text."""
    errors = held_back.errors
    if not errors:
        return (
            "held-back error: unknown, the other measurements do not determine the model"
            f" ({held_back.method}); measure more numbers of ranks"
        )
    skipped = held_back.unpredictable
    return (
        f"held-back error of the step time: median {statistics.median(errors):.1%}, worst {max(errors):.1%} of"
        f" {len(errors)} measurements ({held_back.method}"
        + (f"; {skipped} more could not be predicted from the rest)" if skipped else ")")
    )


def assumptions(machine: Machine, measured: Sequence[MeasuredStep]) -> list[str]:
    """What the prediction assumes, as text."""
    most = max(step.case.ranks for step in measured)
    lines = [
        f"These are extrapolations, not measurements: nothing ran on {machine.name}, and nothing on more than {most}"
        f" rank{'s' if most > 1 else ''}. The held-back error above is that of the measured machine.",
        f"Source of the machine's numbers: {machine.source}.",
    ]
    if machine.compute is not None:
        lines.append(
            "Compute is that of the described device, not fitted: images × FLOP / (rate × MFU), or the file's images/s"
            " if given. Memory bandwidth limits the optimiser. No rank waits for a slower one."
        )
    if machine.loader_images_per_s is None:
        measured_loader = machine.compute is None and any(step.loader is not None for step in measured)
        lines.append(
            "The loader is as fast as measured by itself." if measured_loader else "The loader never limits a step."
        )
    lines.append(
        "Communication (in the table including the wait for the slower rank): a ring over consecutive ranks at the"
        " speed of its slowest link, with DeepSpeed's messages as counted. Memory: weights, gradients and optimiser"
        " states by the ZeRO paper, without activations."
    )
    if machine.device == "cuda":
        lines.append(
            "NCCL's trees need fewer hops than a ring, so communication is overestimated for many ranks and short"
            " messages."
        )
    return lines


def draw(rows: Sequence[dict[str, Any]], machine: str, error: str, path: Path) -> None:
    """Plot images/s per curve; the dotted ideal is the rate of the fewest nodes times the number of nodes."""
    from brain_dist.pages.figures import COLOURS, STYLES, literal, new_figure, save_png, style_axes

    figure = new_figure(8, 5)
    axes = figure.subplots()
    for index, name in enumerate(dict.fromkeys(row["curve"] for row in rows)):
        curve = [row for row in rows if row["curve"] == name]
        colour, style = COLOURS[index % len(COLOURS)], STYLES[index // len(COLOURS) % len(STYLES)]
        ranks = [row["ranks"] for row in curve]
        ideal = [curve[0]["images_per_s"] * count / ranks[0] for count in ranks]
        rates = [row["images_per_s"] for row in curve]
        axes.plot(ranks, ideal, color=colour, linestyle=":", linewidth=1)
        axes.plot(ranks, rates, color=colour, linestyle=style, marker="o", markersize=4, label=literal(name))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({row["ranks"] for row in rows})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    label = "\n".join(["ranks (dotted: ideal)", *textwrap.wrap(error, 100)])
    style_axes(axes, f"{literal(machine)}: extrapolated, not measured", label, "images/s")
    axes.legend(frameon=False, fontsize=8.5)
    save_png(figure, path)
