"""The plots of a comparison, as <svg> elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from brain_dist.comparison.wording import value_text
from brain_dist.judging.weighted import METRICS
from brain_dist.pages.figures import COLOURS, INK, MUTED, figure_svg, literal, new_figure, style_axes


def differences(metric: str, pairs: list[dict[str, Any]], margin: float | None) -> str:
    """The difference of each pair with its 95 % interval; a filled point where it is separable from 0."""
    shown = [pair for pair in pairs if "interval" in pair]
    scale = 100 if METRICS[metric].is_share else 1
    figure = new_figure(7.6, 1.1 + 0.3 * len(shown))
    axes = figure.subplots()
    for y, pair in enumerate(reversed(shown)):
        colour = COLOURS[0] if pair["separable"] else "#8795a3"
        low, high = (scale * end for end in pair["interval"])
        axes.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(scale * pair["difference"], y, "o", color=colour, markersize=6,
                  markerfacecolor=colour if pair["separable"] else "white")  # fmt: skip
    axes.axvline(0, color=INK, linewidth=1)
    if margin is not None:
        axes.axvspan(-scale * margin, scale * margin, color="#f3ead8", zorder=0)
    style_axes(axes, "", f"difference of {METRICS[metric].title}{', percentage points' if scale == 100 else ''}", "")
    axes.set_yticks(range(len(shown)), [literal(f"{pair['a']} − {pair['b']}") for pair in reversed(shown)])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.grid(visible=False, axis="y")
    return figure_svg(figure, "differences", "Difference of each pair of models with its 95 % interval.")


def critical_difference_diagram(names: list[str], friedman: dict[str, Any], nemenyi: dict[str, Any]) -> str:
    """Mean ranks of the models; bars join models that Nemenyi's test cannot tell apart (Demšar 2006)."""
    from pandas import DataFrame, Series
    from scikit_posthocs import critical_difference_diagram as draw

    labels = [literal(name) for name in names]
    ranks = Series(friedman["mean_ranks"], index=labels)
    figure = new_figure(7.6, 1.8 + 0.22 * len(names))
    axes = figure.subplots()
    draw(
        ranks,
        DataFrame(np.array(nemenyi["p"]), index=labels, columns=labels),
        ax=axes,
        label_fmt_left="{label}  {rank:.2f}",
        label_fmt_right="{rank:.2f}  {label}",
        label_props={"fontsize": 9.5},
        elbow_props={"color": INK, "linewidth": 0.8},
        marker_props={"color": COLOURS[0], "s": 28},
        crossbar_props={"color": COLOURS[1], "linewidth": 3},
    )
    axes.tick_params(colors=MUTED, labelsize=9)
    start, length = min(friedman["mean_ranks"]), nemenyi["critical_difference"]
    axes.plot([start, start + length], [2, 2], color=INK, linewidth=2, marker="|", markersize=8)
    axes.text(start + length / 2, 2.3, "critical difference", color=MUTED, fontsize=9, ha="center", va="bottom")
    axes.set_ylim(top=3.6)
    described = ", ".join(f"{name} {rank:.2f}" for name, rank in zip(names, friedman["mean_ranks"], strict=True))
    return figure_svg(figure, "ranks", f"Critical-difference diagram. Mean ranks: {described}.")


def tiers(metric: str, result: dict[str, Any], prefix: str = "tiers") -> str:
    """The metric of each model with its 95 % interval over groups and its runs, best first; a line between tiers."""
    models = list(result["models"].items())[::-1]
    scale = 100 if METRICS[metric].is_share else 1
    figure = new_figure(7.6, 1.1 + 0.34 * len(models))
    axes = figure.subplots()
    for y, (_, model) in enumerate(models):
        if model["value"] is None:
            continue
        if "interval" in model:
            axes.plot([scale * end for end in model["interval"]], [y, y], color=COLOURS[0], linewidth=2)
        runs = [scale * value for value in model["runs"] if value is not None]
        if len(runs) > 1:
            axes.plot(runs, [y] * len(runs), "|", color=COLOURS[1], markersize=11)
        axes.plot(scale * model["value"], y, "o", color=COLOURS[0], markersize=7)
    for y in range(1, len(models)):
        if models[y][1]["tier"] != models[y - 1][1]["tier"]:
            axes.axhline(y - 0.5, color=INK, linewidth=1)
    unit = ", %" if scale == 100 else ""
    style_axes(axes, "", METRICS[metric].title + unit, "")
    axes.set_yticks(range(len(models)), [literal(name) for name, _ in models])
    axes.set_ylim(-0.6, len(models) - 0.4)
    axes.grid(visible=False, axis="y")
    listed = ", ".join(f"{name} {value_text(metric, model['value'])}" for name, model in models[::-1])
    return figure_svg(figure, prefix, f"{METRICS[metric].title} of each model with its 95 % interval: {listed}.")
