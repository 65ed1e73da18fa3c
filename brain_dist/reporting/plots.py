"""The report's figures: inline SVG plots (matplotlib) and pictures as data addresses. Nothing here reads a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.judging.metrics import reliability, wilson_interval
from brain_dist.pages.figures import COLOURS, INK, STYLES, style_axes, figure_svg, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MOST_POINTS = 400  # of one drawn line: a long run's log would otherwise be most of the page


def roc(label: np.ndarray, prob: np.ndarray, names: Sequence[str], auc: Sequence[float | None]) -> str:
    """ROC curves of each class against the rest; a class without an AUC has no curve."""
    from sklearn.metrics import roc_curve

    figure = new_figure(4.6, 4.3)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#9aa7b4", linewidth=1, linestyle=(0, (2, 3)))
    for c, (name, area) in enumerate(zip(names, auc, strict=True)):
        if area is None:
            continue
        shown = "> 0.999" if 0.9995 <= area < 1 else f"{area:.3f}"
        false, true, _ = roc_curve(label == c, prob[:, c])
        style: dict[str, Any] = {"color": COLOURS[c % len(COLOURS)], "linestyle": STYLES[c % len(STYLES)]}
        axes.plot(false, true, linewidth=1.8, label=f"{name}  {shown}", **style)
    axes.set(xlim=(-0.01, 1), ylim=(0, 1.01), aspect="equal")
    style_axes(axes, "ROC, each class against the rest", "1 − specificity", "sensitivity")
    if any(area is not None for area in auc):
        axes.legend(
            loc="lower right",
            frameon=False,
            fontsize=9,
            title="AUC",
            title_fontsize=9,
            labelcolor=INK,
            alignment="left",
        )
    areas = ", ".join(f"{n} {a:.3f}" for n, a in zip(names, auc, strict=True) if a is not None)
    return figure_svg(
        figure, "roc", f"ROC curves of each class against the rest. Areas under the curve: {areas or 'undefined'}."
    )


def reliability_diagram(label: np.ndarray, prob: np.ndarray, ece: float) -> str:
    """Accuracy against stated confidence, with 95 % Wilson intervals, above the histogram of confidence."""
    bins = reliability(label, prob)
    used = bins["count"] > 0
    count, x, y = bins["count"][used], bins["confidence"][used], bins["accuracy"][used]
    limits = np.array([wilson_interval(round(a * n), int(n)) for a, n in zip(y, count, strict=True)])
    figure = new_figure(4.6, 4.3)
    upper, lower = figure.subplots(2, 1, height_ratios=(3.2, 1), sharex=True)
    upper.plot([0, 1], [0, 1], color="#9aa7b4", linewidth=1, linestyle=(0, (2, 3)))
    whiskers = np.maximum(np.abs(limits.T - y), 0)
    upper.errorbar(x, y, yerr=whiskers, fmt="none", ecolor="#8fb8d8", elinewidth=1.3)
    # The area of a point tells how many images it stands for; a bin of three says little
    upper.scatter(x, y, s=12 + 160 * count / len(label), color=COLOURS[0], zorder=3, clip_on=False)
    upper.set(xlim=(0, 1.01), ylim=(0, 1.03))
    style_axes(upper, "Reliability", "", "share right")
    share = bins["count"] / bins["count"].sum()
    lower.bar(bins["edges"][:-1], share, width=np.diff(bins["edges"]), align="edge", color="#9cc3df", edgecolor="white")
    style_axes(lower, "", "confidence (probability of the named class)", "share")
    lower.set_title("")
    text = f"Reliability diagram over {np.count_nonzero(used)} filled bins. Expected calibration error {ece:.3f}."
    return figure_svg(figure, "reliability", text)


def learning_curves(train: Sequence[dict[str, Any]], evals: Sequence[dict[str, Any]]) -> list[str]:
    """Loss, validation quality and learning rate by optimiser step; a panel without data is left out."""
    val = [row for row in evals if row.get("split") == "val"]
    panels = []
    if train or val:
        figure, axes = _panel("Loss", "cross-entropy")
        if train:
            step, loss = _series(train, "loss")
            axes.plot(*_thin(step, loss, MOST_POINTS), color="#a9c9e2", linewidth=0.9)
            axes.plot(*_thin(step, loss, 40), color=COLOURS[0], linewidth=1.9, label="training")
        if val:
            axes.plot(
                *_series(val, "loss"), color=COLOURS[1], marker="o", markersize=4, linewidth=1.5, label="validation"
            )
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
        panels.append(figure_svg(figure, "loss", "Training and validation loss by optimiser step."))
    if val:
        figure, axes = _panel("Validation", "")
        for c, (key, name) in enumerate(
            {"accuracy": "accuracy", "f1_macro": "macro F1", "auc_macro": "macro AUC"}.items()
        ):
            style: dict[str, Any] = {"color": COLOURS[c], "linestyle": STYLES[c], "marker": "o"}
            step, score = _series(val, key)
            if np.isnan(score).all():
                continue
            axes.plot(step, score, markersize=4, linewidth=1.5, label=name, **style)
        axes.set_ylim(top=1.005)
        axes.set_xlim(left=0)
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
        panels.append(
            figure_svg(figure, "validation", "Validation accuracy, macro F1 and macro AUC by optimiser step.")
        )
    if train:
        step, rate = _thin(*_series(train, "lr"), MOST_POINTS)
        power = int(np.floor(np.log10(np.nanmax(rate)))) if np.nanmax(rate) > 0 else 0
        figure, axes = _panel("Learning rate", f"in units of 1e{power}")
        axes.plot(step, rate / 10.0**power, color=COLOURS[2], linewidth=1.8)
        axes.set_ylim(bottom=0)
        panels.append(figure_svg(figure, "rate", "Learning rate by optimiser step."))
    return panels


def _panel(title: str, y: str) -> tuple[Figure, Axes]:
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(4.0, 2.9)
    axes = figure.subplots()
    style_axes(axes, title, "optimiser step", y)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    return figure, axes


def _series(rows: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values; a value that is absent or null leaves a gap."""
    values = [row.get(key) for row in rows]
    return np.array([row["step"] for row in rows]), np.array([np.nan if v is None else v for v in values], dtype=float)


def _thin(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most ``most`` points, each the mean of its neighbours."""
    if len(x) <= most:
        return x, y
    cuts = np.linspace(0, len(x), most + 1).astype(int)[:-1]
    length = np.diff(np.append(cuts, len(x)))
    return np.add.reduceat(x.astype(float), cuts) / length, np.add.reduceat(y, cuts) / length


def overlay(gray: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay a heat map float [H, W] in 0..1 over a gray picture uint8 [H, W] → uint8 [H, W, 3].

    Cold regions keep the picture, hot ones turn violet to orange (the middle of inferno, whose brightness alone carries
    the order; its pale end would look gray over black).
    """
    import matplotlib

    colour = matplotlib.colormaps["inferno"](0.3 + 0.5 * heat)[..., :3]
    weight = 0.65 * heat[..., None]
    mixed = (1 - weight) * (gray[..., None] / 255) + weight * colour
    return np.round(255 * np.clip(mixed, 0, 1)).astype(np.uint8)
