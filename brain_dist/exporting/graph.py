"""What exports compute: from the network's input to features, logits and class activation maps.

The maps are those of Zhou et al. 2016. If the logit of a class is a weighted sum of the average-pooled channels of the
last feature map, plus a constant, its map is that sum in each cell, before pooling. ReLU of it is Grad-CAM's map, but
for a factor. Where a normalisation follows the pooling, as in ConvNeXt, the map has the factor by which the
normalisation divides the pooled channels of this image. Grad-CAM's map differs there: a cell changes this
factor, too, which it counts.

Networks of other heads have no maps, such as transformers with a class token and heads with a nonlinearity.
:func:`maps_add_up` tries it rather than listing families: the mean of a map must be the logit but for a constant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from brain_dist.networks.weights import classifier_names

if TYPE_CHECKING:
    from brain_dist.stream.normalize import Normalize

TOLERANCE = 1e-4  # of a logit, by which the mean of a map may differ from it


class FeaturesAndLogits(nn.Module):
    """The network's input [B, C, S, S] → features [B, D], logits [B, K]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [B, C, S, S] → (features [B, D], logits [B, K])."""
        cells = self.network.forward_features(images)
        features = self.network.forward_head(cells, pre_logits=True).flatten(1)
        return features, self.network.forward_head(cells)


class FromPixels(nn.Module):
    """Pixels uint8 [B, 1 or 3, S, S] → logits [B, K], features [B, D], and maps [B, K, h, w] if ``maps``."""

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(self, network: Any, normalize: Normalize, *, maps: bool) -> None:
        super().__init__()
        self.network, self.maps = network, maps
        self.register_buffer("scale", normalize.scale)
        self.register_buffer("offset", normalize.offset)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Pixels uint8 [B, 1 or 3, S, S] → (logits [B, K], features [B, D]) and maps [B, K, h, w]."""
        cells = self.network.forward_features(self.offset + pixels.float() * self.scale)
        features = self.network.forward_head(cells, pre_logits=True).flatten(1)
        logits = self.network.forward_head(cells)
        if not self.maps:
            return logits, features
        maps = class_maps(self.network, cells, features)
        assert maps is not None
        return logits, features, maps


def class_maps(network: Any, cells: torch.Tensor, features: torch.Tensor) -> torch.Tensor | None:
    """Class activation maps.

    Args:
        network: a network of timm.
        cells: its last feature map.
        features: [B, D], the input of its classifier.

    Returns:
        [B, K, h, w], for :func:`maps_add_up` to confirm; None if the network surely has none.
    """
    names = classifier_names(network)
    classifier = network.get_submodule(names[0]) if len(names) == 1 else None
    if not isinstance(classifier, nn.Linear) or cells.ndim != 4:
        return None
    if getattr(network, "output_fmt", "NCHW") == "NHWC":
        cells = cells.permute(0, 3, 1, 2)
    if cells.shape[1] != classifier.in_features:
        return None
    weight = classifier.weight[:, :, None, None]
    norm = getattr(getattr(network, "head", None), "norm", None)
    if norm is None or isinstance(norm, nn.Identity):
        return nn.functional.conv2d(cells, weight)
    if isinstance(norm, nn.LayerNorm):
        cells = cells - cells.mean(dim=1, keepdim=True)
    if getattr(norm, "weight", None) is not None:
        cells = cells * norm.weight[:, None, None]
    pooled = cells.mean(dim=(2, 3))
    shift = getattr(norm, "bias", None)
    normalized = features if shift is None else features - shift
    factor = (normalized * pooled).sum(dim=1) / (pooled * pooled).sum(dim=1).clamp(min=1e-30)
    return factor[:, None, None, None] * nn.functional.conv2d(cells, weight)


def has_maps(network: Any, images: torch.Tensor) -> bool:
    """Whether the network has class activation maps, tried on its input ``images`` [B, C, S, S] of two or more."""
    with torch.no_grad():
        cells = network.forward_features(images)
        maps = class_maps(network, cells, network.forward_head(cells, pre_logits=True).flatten(1))
        if maps is None:
            return False
        return maps_add_up(maps.numpy(), network.forward_head(cells).numpy()) <= TOLERANCE


def maps_add_up(maps: np.ndarray, logits: np.ndarray) -> float:
    """How far the means of maps [B, K, h, w] are from the logits [B, K], each but for its class's constant."""
    rest = logits - maps.mean(axis=(2, 3), dtype=np.float64)
    return float(np.abs(rest - rest.mean(axis=0)).max() / max(1.0, float(np.abs(logits).max())))
