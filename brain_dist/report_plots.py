"""The report's figures: inline SVG plots (matplotlib) and pictures as data addresses. Nothing here reads a file."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.metrics import reliability, wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette, told apart by all common kinds of colour vision; line styles repeat the distinction
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
INK, MUTED, GRID = "#1f2a37", "#5b6b7c", "#dfe5ec"
MOST_POINTS = 400  # of one drawn line: a long run's log would otherwise be most of the page


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def dress(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, fontweight="bold")
    axes.set_xlabel(x, color=MUTED, fontsize=9.5)
    axes.set_ylabel(y, color=MUTED, fontsize=9.5)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#b8c2cc")


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element whose ids are unique on the page, with ``description`` for screen readers."""
    import matplotlib

    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Text stays text: it can be searched, and takes the page's font. A fixed salt makes the same figure the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata=nothing, transparent=True)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(
        r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", svg, count=1), count=1
    )
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


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
    dress(axes, "ROC, each class against the rest", "1 − specificity", "sensitivity")
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
    return _svg(
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
    dress(upper, "Reliability", "", "share right")
    share = bins["count"] / bins["count"].sum()
    lower.bar(bins["edges"][:-1], share, width=np.diff(bins["edges"]), align="edge", color="#9cc3df", edgecolor="white")
    dress(lower, "", "confidence (probability of the named class)", "share")
    lower.set_title("")
    text = f"Reliability diagram over {np.count_nonzero(used)} filled bins. Expected calibration error {ece:.3f}."
    return _svg(figure, "reliability", text)


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
        panels.append(_svg(figure, "loss", "Training and validation loss by optimiser step."))
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
        panels.append(_svg(figure, "validation", "Validation accuracy, macro F1 and macro AUC by optimiser step."))
    if train:
        step, rate = _thin(*_series(train, "lr"), MOST_POINTS)
        power = int(np.floor(np.log10(np.nanmax(rate)))) if np.nanmax(rate) > 0 else 0
        figure, axes = _panel("Learning rate", f"in units of 1e{power}")
        axes.plot(step, rate / 10.0**power, color=COLOURS[2], linewidth=1.8)
        axes.set_ylim(bottom=0)
        panels.append(_svg(figure, "rate", "Learning rate by optimiser step."))
    return panels


def _panel(title: str, y: str) -> tuple[Figure, Axes]:
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(4.0, 2.9)
    axes = figure.subplots()
    dress(axes, title, "optimiser step", y)
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


def picture(pixels: np.ndarray) -> str:
    """uint8 [H, W] or [H, W, 3] → a JPEG as a data address."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


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
