"""Maps of what raised the score of each class, for the page."""

from __future__ import annotations

import numpy as np

from brain_dist.errors import UserError
from brain_dist.explaining.cams import TITLES, cam_maps
from brain_dist.explaining.layers import choose_layer
from brain_dist.prediction.maps import METHOD, class_heat
from brain_dist.prediction.onnx_model import OnnxModel
from brain_dist.prediction.outputs import Model, stack_pixels
from brain_dist.prediction.torch_model import TorchModel


def map_method(model: Model) -> str | None:
    """The name of the maps' method; None if the model gives no maps."""
    if isinstance(model, OnnxModel):
        return "CAM" if model.has_maps else None
    if not isinstance(model, TorchModel):
        return None
    try:
        choose_layer(model.opened.model, model.contract.size, METHOD)
    except UserError:  # timm does not list the stages of this network
        return None
    return TITLES[METHOD]


def load_libraries(model: Model) -> None:
    """Import what the maps of a model need, which takes seconds."""
    if isinstance(model, TorchModel):
        import pytorch_grad_cam  # noqa: F401


def class_maps(model: Model, image: np.ndarray) -> np.ndarray | None:
    """The map of each class for an image.

    Args:
        model: the model.
        image: uint8 [S, S] or [S, S, 3].

    Returns:
        float32 [K, S, S] from 0 to 1, each with its own scale; None if the model gives no maps.
    """
    classes, size = len(model.contract.classes), model.contract.size
    if map_method(model) is None:
        return None
    if isinstance(model, TorchModel):
        inputs = model.inputs(stack_pixels([image] * classes, model.contract))
        return cam_maps(model.opened.model, inputs, range(classes), METHOD)
    cells = model.outputs(stack_pixels([image], model.contract)).maps
    assert cells is not None
    return np.stack([class_heat(each, size) for each in cells[0]])
