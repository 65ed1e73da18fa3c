"""Grad-CAM (Selvaraju et al. 2017): the image regions that raise the score of a class, for common timm families.

A map is as coarse as the last feature map (7 × 7 for a 224-pixel input). It shows what the network used, not where the
disease is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.errors import UserError

if TYPE_CHECKING:
    import torch


def target_layer(model: Any) -> torch.nn.Module:
    """The module whose output [B, C, H, W] is the last spatial feature map before pooling.

    Raises:
        UserError: the model does not belong to a supported family.
    """
    from timm.models import VGG, ConvNeXt, EfficientNet, MobileNetV3, ResNet

    net = model  # stays Any after isinstance: timm does not type its submodules
    if isinstance(model, ConvNeXt):
        return net.stages[-1].blocks[-1]  # inside a block activations are channels-last; its output is NCHW
    if isinstance(model, ResNet):
        return net.layer4[-1]
    if isinstance(model, EfficientNet):
        return net.bn2  # normalisation and activation of conv_head, the last layer before pooling
    if isinstance(model, MobileNetV3):
        return net.blocks[-1]  # its conv_head comes after pooling
    if isinstance(model, VGG):
        return net.features[-2]  # the activation of the last convolution; [-1] is a pooling layer
    raise UserError(
        f"Grad-CAM supports convnext, resnet, efficientnet, mobilenetv3 and vgg, not {type(model).__name__}"
    )


def gradcam(model: Any, images: torch.Tensor, targets: Sequence[int]) -> np.ndarray:
    """Grad-CAM of class ``targets[i]`` for ``images[i]``.

    Args:
        model: a network of a family that :func:`target_layer` supports. It is set to evaluation mode, and its gradients
            are cleared.
        images: [B, C, H, W], normalised as in training, on the model's device.
        targets: B class indices.

    Returns:
        float32 [B, H, W] in 0..1, each map scaled to its maximum; all zero if no region raises the score of the class.

    Raises:
        UserError: the model does not belong to a supported family.
    """
    import torch
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    if getattr(model, "grad_checkpointing", False):
        model.set_grad_checkpointing(False)  # recomputation would run the hooks a second time
    # gradients of the input also reach the feature map if the weights are frozen
    inputs = images.detach().clone().requires_grad_(True)
    with torch.enable_grad(), GradCAM(model=model, target_layers=[target_layer(model)]) as cam:
        maps = cam(input_tensor=inputs, targets=[ClassifierOutputTarget(int(target)) for target in targets])
    model.zero_grad(set_to_none=True)
    return np.clip(maps, 0.0, 1.0).astype(np.float32)
