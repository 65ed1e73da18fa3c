"""A picture for each prediction: what the network saw, with a map of what its answer came from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist.errors import UserError
from brain_dist.explaining.cams import cam_maps
from brain_dist.prediction.answers import Prediction
from brain_dist.prediction.model import TorchModel, stack_pixels

METHOD = "layercam"  # needs no images of the training


def write_map(folder: Path, prediction: Prediction, model: Any) -> Path:
    """Write a PNG with the network's input and, beside it, the map of the predicted class over it.

    Its name is the prediction's path and frame, with other characters than letters, digits, ``.`` and ``-`` as ``_``.

    Args:
        folder: where the picture is written.
        prediction: an image with an answer.
        model: the model of the prediction.

    Raises:
        UserError: the model has no layers to make maps from.
    """
    from PIL import Image

    from brain_dist.pages.figures import outlined, overlay

    if not isinstance(model, TorchModel):
        raise UserError("--explain needs the folder of a run; an export has no layers to make maps from")
    assert prediction.image is not None
    assert prediction.label is not None
    target = model.contract.classes.index(prediction.label)
    inputs = model.inputs(stack_pixels([prediction.image], model.contract))
    heat = cam_maps(model.opened.model, inputs, [target], METHOD)[0]
    gray = (
        prediction.image if prediction.image.ndim == 2 else np.asarray(Image.fromarray(prediction.image).convert("L"))
    )
    sides = [outlined(gray, None), outlined(overlay(gray, heat), None)]
    frame = "" if prediction.frame is None else f"-{prediction.frame}"
    path = folder / f"{re.sub(r'[^A-Za-z0-9.-]', '_', prediction.path.lstrip('./'))[-180:]}{frame}.png"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(sides, axis=1)).save(path)
    return path
