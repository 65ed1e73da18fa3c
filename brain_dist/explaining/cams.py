"""Class activation maps: the regions of an image whose features raise the score of a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.explaining.layers import Layer, choose_layer

if TYPE_CHECKING:
    import torch

# Selvaraju et al. 2017; Chattopadhay et al. 2018; Jiang et al. 2021; Draelos and Carin 2020
TITLES = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "layercam": "LayerCAM", "hirescam": "HiResCAM"}


def cam_maps(
    model: Any, images: torch.Tensor, targets: Sequence[int], method: str, layer: Layer | None = None
) -> np.ndarray:
    """Maps of class ``targets[i]`` for ``images[i]``.

    Args:
        model: a network of timm. It is set to evaluation mode, and its gradients are cleared.
        images: [B, C, H, W], normalised as in training, on the model's device.
        targets: B class indices.
        method: one of :data:`TITLES`.
        layer: the layer to make the maps from; None takes :func:`~brain_dist.explaining.layers.choose_layer`.

    Returns:
        float32 [B, H, W] in 0..1. The smallest value of each map is 0 and the largest 1, so that maps of different
        images cannot be compared by their values; all are 0 if no region raises the score of the class.

    Raises:
        UserError: timm does not list the stages of this network.
    """
    import pytorch_grad_cam as cams
    import torch
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    makers = {
        "gradcam": cams.GradCAM,
        "gradcam++": cams.GradCAMPlusPlus,
        "layercam": cams.LayerCAM,
        "hirescam": cams.HiResCAM,
    }
    layer = layer or choose_layer(model, min(images.shape[-2:]), method)
    if getattr(model, "grad_checkpointing", False):
        model.set_grad_checkpointing(False)  # recomputation would run the hooks a second time
    # gradients of the input also reach the feature map if the weights are frozen
    inputs = images.detach().clone().requires_grad_(True)
    cam = makers[method](model, [model.get_submodule(layer.name)], layer.as_map)
    try:
        with torch.enable_grad():
            maps = cam(input_tensor=inputs, targets=[ClassifierOutputTarget(int(target)) for target in targets])
    finally:
        cam.activations_and_grads.release()  # its own ``with`` would hide an IndexError
        model.zero_grad(set_to_none=True)
    top = maps.max(axis=(1, 2), keepdims=True)  # below 1 where all gradients are tiny
    return np.clip(maps / np.where(top > 0, top, 1), 0.0, 1.0).astype(np.float32)
