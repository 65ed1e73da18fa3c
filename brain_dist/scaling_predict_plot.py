"""The plot of a prediction: images/s against ranks, with the ideal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brain_dist.report_plots import COLOURS, GRID, INK, MUTED, STYLES


def draw(rows: Sequence[dict[str, Any]], machine: str, error: str, path: Path) -> None:
    """One line a configuration, dotted its ideal: the rate of the fewest nodes times the number of nodes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(_name(row) for row in rows))
    for number, name in enumerate(names):
        own = [row for row in rows if _name(row) == name]
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
    axes.set_title(
        f"Extrapolated to {machine}, measured nowhere", loc="left", fontsize=11, color=INK, fontweight="bold"
    )
    axes.set_xlabel(f"ranks (dotted: ideal)\n{error}", color=MUTED, fontsize=8.5)
    axes.set_ylabel("images/s", color=MUTED)
    axes.grid(color=GRID)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5)
    figure.savefig(path, dpi=130)


def _name(row: dict[str, Any]) -> str:
    return f"{row['model']} {row['size']}² {row['precision']}, ZeRO {row['zero_stage']}, {row['mode']}"
