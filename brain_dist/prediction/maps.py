"""A picture for each prediction: what the network saw, with a map of what its answer came from."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

import numpy as np

from brain_dist.errors import UserError
from brain_dist.explaining.cams import cam_maps
from brain_dist.prediction.answers import Prediction
from brain_dist.prediction.outputs import Model, stack_pixels
from brain_dist.prediction.torch_model import TorchModel

METHOD = "layercam"  # needs no images of the training
_LONGEST = 180  # characters of a path in the name of its picture


def write_map(folder: Path, prediction: Prediction, model: Model) -> Path:
    """Write a PNG with the network's input and, beside it, the map of the predicted class over it.

    :func:`map_name` names it.

    Args:
        folder: where the picture is written.
        prediction: an image with an answer.
        model: the model of the prediction.

    Raises:
        UserError: the model gives no maps.
    """
    from PIL import Image

    from brain_dist.pages.figures import outlined, overlay

    assert prediction.image is not None
    assert prediction.label is not None
    target = model.contract.classes.index(prediction.label)
    heat = _heat(model, stack_pixels([prediction.image], model.contract), target)
    gray = (
        prediction.image if prediction.image.ndim == 2 else np.asarray(Image.fromarray(prediction.image).convert("L"))
    )
    sides = [outlined(gray, None), outlined(overlay(gray, heat), None)]
    path = folder / map_name(prediction)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(sides, axis=1)).save(path)
    return path


def map_name(prediction: Prediction) -> str:
    """The file name of a prediction's picture, which no other path or frame has: its path and frame.

    Other characters than letters, digits, ``_``, ``.`` and ``-`` become ``_``, and only the end of a long path is kept.
    Where that changes the path, eight hex digits of its sha256 follow, because another path could become the same. They
    also follow a path that ends as if it had a frame.
    """
    path = prediction.path
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", path)[-_LONGEST:].lstrip(".")
    if name != path or (prediction.frame is None and re.search(r"-\d+$", name)):
        name += f"-{sha256(path.encode()).hexdigest()[:8]}"
    return f"{name}.png" if prediction.frame is None else f"{name}-{prediction.frame}.png"


def class_heat(cells: np.ndarray, size: int) -> np.ndarray:
    """The part of a class activation map that raises the score of its class, for display.

    Args:
        cells: [h, w], the map of the class, see :class:`~brain_dist.prediction.outputs.Outputs`.
        size: pixels per side, S.

    Returns:
        float32 [S, S] from 0 to 1: interpolated, from the smallest value to the largest. All are 0 if no cell raises
        the score, or all do so alike.
    """
    import cv2

    heat = cv2.resize(np.maximum(cells, 0).astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    low, high = heat.min(), heat.max()
    if high - low <= 1e-5 * high:  # what differs is the rounding of the interpolation
        return np.zeros_like(heat)
    return (heat - low) / (high - low)


def _heat(model: Model, pixels: np.ndarray, target: int) -> np.ndarray:
    """The map of a class for one image: LayerCAM if torch has the network, else the export's own map."""
    if isinstance(model, TorchModel):
        return cam_maps(model.opened.model, model.inputs(pixels), [target], METHOD)[0]
    maps = model.outputs(pixels).maps
    if maps is None:
        raise UserError("--explain: this export has no maps; give the folder of the run")
    return class_heat(maps[0, target], pixels.shape[-1])
