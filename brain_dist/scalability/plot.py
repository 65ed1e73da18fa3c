"""The plot of a scaling experiment: speed-up against the ideal, and where a step's time goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.pages.figures import COLOURS, INK, MUTED, STYLES, literal, new_figure, save_png, style_axes
from brain_dist.scalability.results import STAGES, Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The hues of pages.figures.COLOURS, and gray for "other"
STAGE_COLOURS = dict(zip(STAGES, ("#E69F00", "#56B4E9", "#0072B2", "#009E73", "#D55E00", "#c3ccd5"), strict=True))
MARKERS = "osD^vP"


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Write a PNG: one column per mode; the speed-up of all curves above, one row of stacked bars per model below."""
    modes = [mode for mode in ("weak", "strong") if any(curve.mode == mode for curve in curves)]
    labels = list(dict.fromkeys(curve.label for curve in curves))
    figure = new_figure(5.2 * len(modes) + 1.4, 4.0 + 2.9 * len(labels))
    grid = figure.subplots(1 + len(labels), len(modes), squeeze=False, height_ratios=[1.35] + [1] * len(labels))
    for column, mode in enumerate(modes):
        _draw_speedups(grid[0, column], [curve for curve in curves if curve.mode == mode], labels, mode)
        for row, label in enumerate(labels, 1):
            matches = [curve for curve in curves if (curve.mode, curve.label) == (mode, label)]
            axes = grid[row, column]
            _draw_stages(
                axes, matches[0] if matches else None, f"{literal(label)}, {mode}", "ms a step" if column == 0 else ""
            )
    for row_axes in grid:
        _share_limits(row_axes)
    _add_legend(figure, grid[1])
    save_png(figure, path)


def _share_limits(row: Sequence[Axes]) -> None:
    """Give the modes of a row the same vertical scale."""
    bottoms, tops = zip(*(axes.get_ylim() for axes in row), strict=True)
    for axes in row:
        axes.set_ylim(min(bottoms), max(tops))


def _add_legend(figure: Figure, row: Sequence[Axes]) -> None:
    handles, names = next(legend for legend in (axes.get_legend_handles_labels() for axes in row) if legend[0])
    figure.legend(
        handles[::-1], names[::-1], loc="outside lower center", ncols=len(names), frameon=False, fontsize=9,
        labelcolor=INK, handlelength=1.2, columnspacing=1.4,
    )  # fmt: skip


def _draw_speedups(axes: Axes, curves: Sequence[Curve], labels: Sequence[str], mode: str) -> None:
    """Median over the repeats, with bars from the smallest to the largest value."""
    ranks = sorted({point["ranks"] for curve in curves for point in curve.points})
    ideal = [count / ranks[0] for count in ranks]
    axes.plot(ranks, ideal, color="#9aa7b4", linewidth=1.2, linestyle=(0, (2, 3)), label="ideal", zorder=1)
    for curve in curves:
        _draw_speedup(axes, curve, labels.index(curve.label))
    baseline = f"{ranks[0]} rank{'s' if ranks[0] > 1 else ''}"
    style_axes(axes, f"Speed-up and efficiency, {mode} scaling", "ranks", f"images/s against {baseline}")
    if len(ranks) > 1:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        ticks = [2.0**power for power in range(int(np.ceil(np.log2(ideal[-1]))) + 1)]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks(ranks, [str(count) for count in ranks])
    axes.minorticks_off()
    axes.margins(x=0.08, y=0.12)
    axes.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=INK)


def _draw_speedup(axes: Axes, curve: Curve, index: int) -> None:
    points = [(point["ranks"], point["speedup"]) for point in curve.points if point["speedup"]]
    median = np.array([speedup.median for _, speedup in points])
    below = [speedup.median - speedup.low for _, speedup in points]
    above = [speedup.high - speedup.median for _, speedup in points]
    last = curve.points[-1]
    efficiency = f": {100 * last['efficiency'].median:.0f} % at {last['ranks']} ranks" if last["efficiency"] else ""
    axes.errorbar(
        [ranks for ranks, _ in points], median, yerr=np.array([below, above]), color=COLOURS[index % len(COLOURS)],
        linestyle=STYLES[index % len(STYLES)], marker=MARKERS[index % len(MARKERS)], markersize=5, capsize=3,
        linewidth=1.8, label=literal(curve.label) + efficiency,
    )  # fmt: skip


def _draw_stages(axes: Axes, curve: Curve | None, title: str, y_label: str) -> None:
    """One bar per number of ranks; its height is the step time with every stage synchronised."""
    points = curve.points if curve else ()
    positions = np.arange(len(points))
    bottom = np.zeros(len(points))
    for name, colour in STAGE_COLOURS.items():
        height = np.array([1e3 * point["stages"][name] for point in points])
        axes.bar(positions, height, 0.62, bottom, color=colour, edgecolor="white", linewidth=0.6, label=STAGES[name])
        bottom += height
    for x, top, point in zip(positions, bottom, points, strict=True):
        axes.annotate(
            f"{top:,.{0 if top >= 100 else 1}f} ms\n{100 * point['communication'].median:.0f} % comm.",
            (x, top), (0, 4), textcoords="offset points", ha="center", fontsize=8, color=MUTED,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    style_axes(axes, title, "", y_label)
    names = [
        f"{point['ranks']} rank{'s' if point['ranks'] > 1 else ''}\nbatch {point['global_batch']}" for point in points
    ]
    axes.set_xticks(positions, names)
    axes.grid(axis="x", visible=False)
    if len(points):
        axes.set_xlim(-0.7, len(points) - 0.3)
        axes.set_ylim(0, 1.28 * float(bottom.max()))
