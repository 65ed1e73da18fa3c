"""The plots of a report, as <svg> elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.judging.metrics import reliability, wilson_interval
from brain_dist.pages.figures import COLOURS, INK, STYLES, figure_svg, literal, new_figure, style_axes
from brain_dist.pages.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]
MAX_POINTS = 400  # per line: the log of a long run would otherwise be most of the page
SMOOTH_POINTS = 40
DIAGONAL: dict[str, Any] = {"color": "#9aa7b4", "linewidth": 1, "linestyle": (0, (2, 3))}
SCORES = {"accuracy": "accuracy", "f1_macro": "macro F1", "auc_macro": "macro AUC"}


def roc(label: np.ndarray, prob: np.ndarray, names: Sequence[str], auc: Sequence[float | None]) -> str:
    """One-vs-rest ROC curves of labels [N] and probabilities [N, C]; a class without an AUC has no curve."""
    from sklearn.metrics import roc_curve

    figure = new_figure(4.6, 4.3)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], **DIAGONAL)
    for c, (name, area) in enumerate(zip(names, auc, strict=True)):
        if area is not None:
            false, true, _ = roc_curve(label == c, prob[:, c])
            style: dict[str, Any] = {"color": COLOURS[c % len(COLOURS)], "linestyle": STYLES[c % len(STYLES)]}
            axes.plot(false, true, linewidth=1.8, label=f"{literal(name)}  {number(area)}", **style)
    axes.set(xlim=(-0.01, 1), ylim=(0, 1.01), aspect="equal")
    style_axes(axes, "ROC, one class vs. rest", "1 − specificity", "sensitivity")
    if any(area is not None for area in auc):
        axes.legend(
            loc="lower right", frameon=False, fontsize=9, title="AUC", title_fontsize=9, labelcolor=INK,
            alignment="left",
        )  # fmt: skip
    areas = ", ".join(f"{name} {area:.3f}" for name, area in zip(names, auc, strict=True) if area is not None)
    return figure_svg(figure, "roc", f"One-vs-rest ROC curves. Areas under the curve: {areas or 'undefined'}.")


def precision_recall(label: np.ndarray, prob: np.ndarray, names: Sequence[str]) -> str:
    """One-vs-rest precision-recall curves of labels [N] and probabilities [N, C] of the classes that occur."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    figure = new_figure(4.6, 4.3)
    axes = figure.subplots()
    texts = []
    for c, name in enumerate(names):
        if 0 < np.count_nonzero(label == c) < len(label):
            precision, recall, _ = precision_recall_curve(label == c, prob[:, c])
            area = float(average_precision_score(label == c, prob[:, c]))
            style: dict[str, Any] = {"color": COLOURS[c % len(COLOURS)], "linestyle": STYLES[c % len(STYLES)]}
            axes.step(recall, precision, where="post", linewidth=1.8, label=f"{literal(name)}  {number(area)}", **style)
            axes.axhline(float((label == c).mean()), color=style["color"], linewidth=0.8, alpha=0.45, linestyle=":")
            texts.append(f"{name} {area:.3f}")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.01), aspect="equal")
    style_axes(axes, "Precision and recall, one class vs. rest", "recall (sensitivity)", "precision")
    if texts:
        axes.legend(
            loc="lower left", frameon=False, fontsize=9, title="average precision", title_fontsize=9, labelcolor=INK,
            alignment="left",
        )  # fmt: skip
    return figure_svg(figure, "pr", f"Precision-recall curves. Average precision: {', '.join(texts) or 'undefined'}.")


def reliability_diagram(
    label: np.ndarray, prob: np.ndarray, ece: float, *, name: str = "reliability", title: str = "Reliability"
) -> str:
    """Accuracy against confidence with 95 % Wilson intervals, above the histogram of confidence.

    ``label`` is [N], ``prob`` [N, C]; ``name`` is unique on the page.
    """
    bins = reliability(label, prob)
    used = bins["count"] > 0
    count, x, y = bins["count"][used], bins["confidence"][used], bins["accuracy"][used]
    limits = np.array([wilson_interval(round(a * n), int(n)) for a, n in zip(y, count, strict=True)])
    figure = new_figure(4.6, 4.3)
    upper, lower = figure.subplots(2, 1, height_ratios=(3.2, 1), sharex=True)
    upper.plot([0, 1], [0, 1], **DIAGONAL)
    upper.errorbar(x, y, yerr=np.maximum(np.abs(limits.T - y), 0), fmt="none", ecolor="#8fb8d8", elinewidth=1.3)
    # The area of a point is proportional to its number of images: a bin of three images says little
    upper.scatter(x, y, s=12 + 160 * count / len(label), color=COLOURS[0], zorder=3, clip_on=False)
    upper.set(xlim=(0, 1.01), ylim=(0, 1.03))
    style_axes(upper, title, "", "accuracy")
    share = bins["count"] / bins["count"].sum()
    lower.bar(bins["edges"][:-1], share, width=np.diff(bins["edges"]), align="edge", color="#9cc3df", edgecolor="white")
    style_axes(lower, "", "confidence (probability of the predicted class)", "share")
    text = f"Reliability diagram over {np.count_nonzero(used)} non-empty bins. Expected calibration error {ece:.3f}."
    return figure_svg(figure, name, text)


def risk_coverage(selective: dict[str, dict[str, Any]]) -> str:
    """Share of errors among the answered images against their share, by name of the predictions."""
    figure = new_figure(4.6, 3.6)
    axes = figure.subplots()
    for index, (name, result) in enumerate(selective.items()):
        style: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index % len(STYLES)]}
        curve = result["curve"]
        axes.plot(curve["coverage"], curve["risk"], linewidth=1.8, label=literal(name), **style)
    axes.set(xlim=(0, 1.01))
    axes.set_ylim(bottom=0)
    style_axes(axes, "Risk and coverage", "share of images that are answered", "share of errors among them")
    if selective:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    areas = ", ".join(f"{name} {number(result['area']['aurc'])}" for name, result in selective.items())
    return figure_svg(figure, "risk", f"Risk-coverage curves. Areas under the curve: {areas or 'none'}.")


def learning_curves(log: Rows) -> list[str]:
    """Loss, validation scores and learning rate by optimiser step; panels without data are left out."""
    train = [row for row in log if row.get("kind") == "train"]
    validation = [row for row in log if row.get("kind") == "eval" and row.get("split") == "val"]
    return [
        *([_loss_panel(train, validation)] if train or validation else []),
        *([_scores_panel(validation)] if validation else []),
        *([_learning_rate_panel(train)] if train else []),
    ]


def _loss_panel(train: Rows, validation: Rows) -> str:
    figure, axes = _panel("Loss", "cross-entropy")
    if train:
        step, loss = _series(train, "loss")
        axes.plot(*_averaged(step, loss, MAX_POINTS), color="#a9c9e2", linewidth=0.9)
        axes.plot(*_averaged(step, loss, SMOOTH_POINTS), color=COLOURS[0], linewidth=1.9, label="training")
    if validation:
        style: dict[str, Any] = {"color": COLOURS[1], "marker": "o", "markersize": 4, "linewidth": 1.5}
        axes.plot(*_series(validation, "loss"), label="validation", **style)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure_svg(figure, "loss", "Training and validation loss by optimiser step.")


def _scores_panel(validation: Rows) -> str:
    figure, axes = _panel("Validation", "")
    for index, (key, name) in enumerate(SCORES.items()):
        step, score = _series(validation, key)
        if not np.isnan(score).all():
            style: dict[str, Any] = {"color": COLOURS[index], "linestyle": STYLES[index], "marker": "o"}
            axes.plot(step, score, markersize=4, linewidth=1.5, label=name, **style)
    axes.set_ylim(top=1.005)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
    return figure_svg(figure, "validation", "Validation accuracy, macro F1 and macro AUC by optimiser step.")


def _learning_rate_panel(train: Rows) -> str:
    step, rate = _averaged(*_series(train, "lr"), MAX_POINTS)
    power = int(np.floor(np.log10(np.nanmax(rate)))) if np.nanmax(rate) > 0 else 0
    figure, axes = _panel("Learning rate", f"× 1e{power}")
    axes.plot(step, rate / 10.0**power, color=COLOURS[2], linewidth=1.8)
    axes.set_ylim(bottom=0)
    return figure_svg(figure, "rate", "Learning rate by optimiser step.")


def _panel(title: str, y: str) -> tuple[Figure, Axes]:
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(4.0, 2.9)
    axes = figure.subplots()
    style_axes(axes, title, "optimiser step", y)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    return figure, axes


def _series(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values; a missing value leaves a gap."""
    values = [row.get(key) for row in rows]
    steps = np.array([row["step"] for row in rows])
    return steps, np.array([np.nan if value is None else value for value in values], dtype=float)


def _averaged(x: np.ndarray, y: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """At most ``count`` points, each the mean of neighbouring points."""
    if len(x) <= count:
        return x, y
    starts = np.linspace(0, len(x), count + 1).astype(int)[:-1]
    length = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x.astype(float), starts) / length, np.add.reduceat(y, starts) / length
