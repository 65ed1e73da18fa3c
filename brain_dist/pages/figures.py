"""The common style of figures, and the conversion of figures and images to HTML."""

from __future__ import annotations

import base64
import html
import io
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.common.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Palette of Okabe and Ito, safe for all common kinds of colour vision. Line styles repeat the distinction.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
OUTLINE = (86, 180, 233)  # the palette's light blue
INK, MUTED, GRID = "#1f2a37", "#5b6b7c", "#dfe5ec"

# without a writable home, matplotlib uses a temporary folder and warns of a slower start
logging.getLogger("matplotlib").setLevel(logging.ERROR)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; width and height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def style_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Set the title and labels of ``axes`` in the common style."""
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, fontweight="bold")
    axes.set_xlabel(x, color=MUTED, fontsize=9.5)
    axes.set_ylabel(y, color=MUTED, fontsize=9.5)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#b8c2cc")


def literal(text: str) -> str:
    """Text from data for a figure: its dollar signs do not start a formula."""
    return text.replace("$", r"\$")


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure to a PNG file, or leave the file unchanged if the disk is full."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def figure_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element.

    Args:
        figure: the figure.
        name: prefix of the element's ids, unique on the page.
        description: text for screen readers.
    """
    import matplotlib

    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Text stays text: it can be searched and takes the font of the page. A fixed salt makes the output reproducible.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=no_metadata, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    opening, rest = svg.split(">", 1)
    opening = re.sub(r' (?:width|height)="[^"]*"', "", opening)  # the page scales it
    opening = opening.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)
    return f"{opening}>{rest}"


def jpeg_url(pixels: np.ndarray, quality: int = 90) -> str:
    """uint8 [H, W] or [H, W, 3] as a data URL of a JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def overlay(gray: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Blend a heat map float [H, W] in 0..1 over a gray image uint8 [H, W]; returns uint8 [H, W, 3].

    Cold regions keep the image, hot regions turn from violet to orange. Only the middle of the inferno colour map is
    used: its brightness alone shows the order, and its pale end would look gray on black.
    """
    import cv2

    level = (256 * (0.3 + 0.5 * heat)).astype(np.uint8)
    colour = cv2.applyColorMap(level, cv2.COLORMAP_INFERNO)[..., ::-1]  # OpenCV orders blue, green, red
    weight = 0.65 * heat[..., None]
    return np.round((1 - weight) * gray[..., None] + weight * colour).astype(np.uint8)


def outlined(pixels: np.ndarray, mask: np.ndarray | None, side: int = 256) -> np.ndarray:
    """Enlarge an image, uint8 [H, W] or [H, W, 3], by a whole number to at least ``side``, and outline a mask in it.

    Args:
        pixels: the image.
        mask: bool [H, W], what to outline; None outlines nothing.
        side: least number of pixels per side.

    Returns:
        uint8 [k · H, k · W, 3].
    """
    import cv2
    from PIL import Image

    factor = -(-side // min(pixels.shape[:2]))
    size = (factor * pixels.shape[1], factor * pixels.shape[0])
    image = np.array(Image.fromarray(pixels).convert("RGB").resize(size, Image.Resampling.BILINEAR))
    if mask is not None:
        large = mask.repeat(factor, axis=0).repeat(factor, axis=1)
        cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
        border = large & (cv2.erode(large.astype(np.uint8), cross, iterations=2) == 0)
        image[cv2.dilate(border.astype(np.uint8), cross) > 0] = 0  # a dark rim, visible on bright and coloured pixels
        image[border] = OUTLINE
    return image
