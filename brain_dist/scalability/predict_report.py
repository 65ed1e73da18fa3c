"""What a prediction prints and draws: the fit, its error, the tables, what they rest on, the plot."""

from __future__ import annotations

import math
import statistics
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brain_dist.errors import UserError
from brain_dist.scalability.cost import Measured, Model
from brain_dist.scalability.cost_fit import HeldBack
from brain_dist.scalability.machines import Machine


def report(
    found: Sequence[dict[str, Any]],
    rows: Sequence[Measured],
    fitted: Model,
    tested: HeldBack,
    machine: Machine,
    folder: Path,
) -> None:
    """Print what was fitted, how far off it was, the table and what it rests on; write predict.parquet and .png."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    for line in [*told(rows, fitted), error_line(tested)]:
        console.print(line, highlight=False, markup=False)
    for name in dict.fromkeys(row["curve"] for row in found):
        table = Table(title=f"{name}; extrapolated to {machine.name}", title_justify="left")
        for head in (
            "nodes",
            "ranks",
            "batch",
            "images/s",
            "speed-up",
            "efficiency",
            "step, ms",
            "communication",
            "memory",
        ):
            table.add_column(head, justify="right")
        for row in (row for row in found if row["curve"] == name):
            table.add_row(
                f"{row['nodes']}", f"{row['ranks']:,}", f"{row['global_batch']:,}", f"{row['images_per_s']:,.0f}",
                f"{row['speedup']:.2f}", f"{row['efficiency']:.0%}", f"{1e3 * row['step']:,.2f}",
                f"{(row['exposed'] + row['waiting']) / row['step']:.0%}", f"{row['memory_states'] / 1e6:,.1f} MB",
            )  # fmt: skip
        console.print(table)
    for line in assumptions(machine, rows):
        console.print(line, highlight=False, markup=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(list(found)), folder / "predict.parquet")
        draw(found, machine.name, error_line(tested), folder / "predict.png")
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}; choose another folder") from None
    print(f"written: {folder}/predict.parquet, {folder}/predict.png")


def told(rows: Sequence[Measured], fitted: Model) -> list[str]:
    """The fitted unknowns in words."""
    ranks = sorted({row.case.ranks for row in rows})
    lines = [f"fitted to {len(rows)} measurements on {', '.join(map(str, ranks))} ranks:"]
    for (model, size, precision, stage), own in fitted.compute.items():
        lines += [
            f"  {model} {size}² {precision}, ZeRO {stage}:",
            f"    {1e3 * own.fixed:.2f} ms a micro-batch + {1e3 * own.per_image:.3f} ms an image, optimiser"
            f" {1e3 * own.per_step:.2f} ms + {1e9 * own.per_parameter:.2f} ms a million parameters",
        ]
    for name, link in (("inside a machine", fitted.link), ("between machines", fitted.network)):
        if link is not None:
            speed = f"{link.bandwidth / 1e6:,.0f} MB/s" if math.isfinite(link.bandwidth) else "no bound seen"
            lines.append(f"  wires {name}: α {1e6 * link.latency:,.0f} µs a hop, β {speed}")
    if any(row.case.ranks > 1 for row in rows):
        lines.append(f"  waiting for the slower rank: {fitted.waiting:.1%} of forward and backward")
    return lines


def error_line(tested: HeldBack) -> str:
    """How far off the fit was where it had not looked."""
    if not tested.errors:
        return f"held-back error: unknown, the rest told too little ({tested.how}); measure more numbers of ranks"
    line = (
        f"held-back error of the step time: median {statistics.median(tested.errors):.1%}, worst"
        f" {max(tested.errors):.1%} of {len(tested.errors)} measurements ({tested.how}"
    )
    if tested.untold:
        line += f"; {tested.untold} more could not be predicted from the rest"
    return line + ")"


def assumptions(machine: Machine, rows: Sequence[Measured]) -> list[str]:
    """What the table rests on."""
    most = max(row.case.ranks for row in rows)
    lines = [
        f"These are extrapolations, not measurements: nothing ran on {machine.name}, and nothing on more than {most}"
        f" rank{'s' if most > 1 else ''}. The held-back error above is that of the machine that was measured.",
        f"Source of the machine's numbers: {machine.source}.",
    ]
    if machine.compute is not None:
        lines.append(
            "Compute is the described device's, not fitted: images × FLOP / (rate × MFU), or its images/s where the"
            " file gives them; the optimiser is bound by memory. No rank is assumed slower than another."
        )
    if machine.loader is None:
        real = machine.compute is None and any(row.loader is not None for row in rows)
        lines.append("The loader is as fast as it was alone." if real else "The loader is assumed never to bind.")
    lines.append(
        "Communication, in the table with waiting for the slower rank: a ring over consecutive ranks at the pace of its"
        " slowest link, DeepSpeed's messages as counted; memory: weights, gradients and optimiser states by the ZeRO"
        " paper, no activations."
    )
    if machine.device == "cuda":
        lines.append(
            "NCCL's trees need fewer hops than a ring: with many ranks and short messages communication is"
            " overestimated."
        )
    return lines


def draw(rows: Sequence[dict[str, Any]], machine: str, error: str, path: Path) -> None:
    """One line a configuration, dotted its ideal: the rate of the fewest nodes times the number of nodes."""
    from brain_dist.pages.figures import COLOURS, STYLES, dress, new_figure

    figure = new_figure(8, 5)
    axes = figure.subplots()
    names = list(dict.fromkeys(row["curve"] for row in rows))
    for number, name in enumerate(names):
        own = [row for row in rows if row["curve"] == name]
        colour, style = COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]
        ranks = [row["ranks"] for row in own]
        ideal = [own[0]["images_per_s"] * row["ranks"] / own[0]["ranks"] for row in own]
        axes.plot(ranks, ideal, color=colour, linestyle=":", linewidth=1)
        axes.plot(ranks, [row["images_per_s"] for row in own], color=colour, linestyle=style, marker="o", markersize=4,
                  label=name)  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({row["ranks"] for row in rows})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    below = "\n".join(["ranks (dotted: ideal)", *textwrap.wrap(error, 100)])
    dress(axes, f"{machine}: extrapolated, not measured", below, "images/s")
    axes.legend(frameon=False, fontsize=8.5)
    figure.savefig(path, dpi=130)
