"""The images of a report: slices as the network saw them, and Grad-CAM maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.errors import UserError
from brain_dist.judging.predictions import Predictions

if TYPE_CHECKING:
    from brain_dist.inference.run import LoadedRun


@dataclass(frozen=True)
class Slice:
    """An image of the report.

    Attributes:
        row: row of the index.
        image: uint8 [H, W], as the network saw it.
        heat: float [H, W] in 0..1, Grad-CAM of the predicted class, or None.
    """

    row: int
    image: np.ndarray
    heat: np.ndarray | None


def make_slices(loaded: LoadedRun, predictions: Predictions, positions: np.ndarray) -> list[Slice]:
    """The images at these positions [M] of the predictions table.

    ``heat`` is None if :func:`brain_dist.inference.gradcam.target_layer` does not support the network.
    """
    from brain_dist.inference.gradcam import gradcam

    if len(positions) == 0:
        return []
    rows = predictions.row[positions].tolist()
    inputs = loaded.images(rows)
    maps: Sequence[np.ndarray | None]
    try:
        maps = list(gradcam(loaded.model, inputs, predictions.predicted[positions].tolist()))
    except UserError:
        maps = [None] * len(rows)
    return [Slice(*columns) for columns in zip(rows, loaded.display(inputs), maps, strict=True)]


def overlay(gray: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Blend a heat map float [H, W] in 0..1 over a gray image uint8 [H, W]; returns uint8 [H, W, 3].

    Cold regions keep the image, hot regions turn from violet to orange. Only the middle of the inferno colour map is
    used: its brightness alone shows the order, and its pale end would look gray on black.
    """
    import matplotlib

    colour = matplotlib.colormaps["inferno"](0.3 + 0.5 * heat)[..., :3]
    weight = 0.65 * heat[..., None]
    mixed = (1 - weight) * (gray[..., None] / 255) + weight * colour
    return np.round(255 * np.clip(mixed, 0, 1)).astype(np.uint8)
