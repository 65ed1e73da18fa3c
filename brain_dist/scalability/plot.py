"""The plot of a scaling experiment: speed-up against the ideal, and where a step's time goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.pages.figures import COLOURS, INK, MUTED, STYLES, dress, new_figure
from brain_dist.scalability.results import TOGETHER, Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# the same hue families as COLOURS; what is left over is gray
STAGE = dict(zip(TOGETHER, ("#E69F00", "#56B4E9", "#0072B2", "#009E73", "#D55E00", "#c3ccd5"), strict=True))
MARKERS = "osD^vP"


def draw(found: Sequence[Curve], path: Path) -> None:
    """Write a PNG: a column a mode; speed-up of all curves above, a row of stacked bars a model and stage below."""
    modes = [mode for mode in ("weak", "strong") if any(curve.mode == mode for curve in found)]
    labels = list(dict.fromkeys(curve.label for curve in found))
    figure = new_figure(5.2 * len(modes) + 1.4, 4.0 + 2.9 * len(labels))
    grid = figure.subplots(1 + len(labels), len(modes), squeeze=False, height_ratios=[1.35] + [1] * len(labels))
    for column, mode in enumerate(modes):
        _speedups(grid[0, column], [curve for curve in found if curve.mode == mode], labels, mode)
        for line, label in enumerate(labels, 1):
            own = [curve for curve in found if (curve.mode, curve.label) == (mode, label)]
            _stages(grid[line, column], own[0] if own else None, f"{label}, {mode}", first=column == 0)
    for line in grid:  # the two modes on one scale
        bottoms, tops = zip(*(axes.get_ylim() for axes in line), strict=True)
        for axes in line:
            axes.set_ylim(min(bottoms), max(tops))
    handles, names = next(h for h in (axes.get_legend_handles_labels() for axes in grid[1]) if h[0])
    figure.legend(
        handles[::-1], names[::-1], loc="outside lower center", ncols=len(names), frameon=False, fontsize=9,
        labelcolor=INK, handlelength=1.2, columnspacing=1.4,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _speedups(axes: Axes, own: Sequence[Curve], labels: Sequence[str], mode: str) -> None:
    """Median over the repeats; the bars reach from the smallest to the largest."""
    ranks = sorted({point.ranks for curve in own for point in curve.points})
    ideal = [r / ranks[0] for r in ranks]
    axes.plot(ranks, ideal, color="#9aa7b4", linewidth=1.2, linestyle=(0, (2, 3)), label="ideal", zorder=1)
    for curve in own:
        points = [(p.ranks, p.speedup) for p in curve.points if p.speedup]
        middle = np.array([s.median for _, s in points])
        reach = np.array([[s.median - s.low for _, s in points], [s.high - s.median for _, s in points]])
        at, last = labels.index(curve.label), curve.points[-1]
        told = f": {100 * last.efficiency.median:.0f} % at {last.ranks} ranks" if last.efficiency else ""
        axes.errorbar(
            [r for r, _ in points], middle, yerr=reach, color=COLOURS[at % len(COLOURS)], capsize=3, linewidth=1.8,
            linestyle=STYLES[at % len(STYLES)], marker=MARKERS[at % len(MARKERS)], markersize=5,
            label=curve.label + told,
        )  # fmt: skip
    dress(
        axes,
        f"Speed-up and efficiency, {mode} scaling",
        "ranks",
        f"images/s against {ranks[0]} rank{'s' if ranks[0] > 1 else ''}",
    )
    if len(ranks) > 1:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        ticks = [2.0**k for k in range(int(np.ceil(np.log2(ideal[-1]))) + 1)]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks(ranks, [str(r) for r in ranks])
    axes.minorticks_off()
    axes.margins(x=0.08, y=0.12)
    axes.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=INK)


def _stages(axes: Axes, curve: Curve | None, title: str, *, first: bool) -> None:
    """A bar a number of ranks, its height the step with every stage waited for."""
    points = curve.points if curve else ()
    at = np.arange(len(points))
    bottom = np.zeros(len(points))
    for name, colour in STAGE.items():
        height = np.array([1e3 * point.stages[name] for point in points])
        axes.bar(at, height, 0.62, bottom, color=colour, edgecolor="white", linewidth=0.6, label=TOGETHER[name])
        bottom += height
    for x, top, point in zip(at, bottom, points, strict=True):
        share = point.communication.median
        axes.annotate(
            f"{top:,.{0 if top >= 100 else 1}f} ms\n{100 * share:.0f} % comm.", (x, top), (0, 4),
            textcoords="offset points", ha="center", fontsize=8, color=MUTED,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    dress(axes, title, "", "ms a step" if first else "")
    axes.set_xticks(at, [f"{p.ranks} rank{'s' if p.ranks > 1 else ''}\nbatch {p.global_batch}" for p in points])
    axes.grid(axis="x", visible=False)
    if len(points):
        axes.set_xlim(-0.7, len(points) - 0.3)
        axes.set_ylim(0, 1.28 * float(bottom.max()))
