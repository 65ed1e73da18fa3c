"""Insertion and deletion (Petsiuk et al. 2018): how fast a class appears and disappears in the order of a map.

Deletion blurs the pixels of the largest values first, insertion starts from the blurred image and shows them first.
Each is the mean probability of the class over the steps. Neither needs to know where the tumour is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

STEPS = 32
BLUR = 1 / 8  # standard deviation of the blur, as a fraction of the side
MEASURES = {"insertion": 1, "deletion": -1}  # 1: more is better


def insertion_deletion(
    model: Any, image: torch.Tensor, heats: np.ndarray, target: int, *, seed: int, micro_batch: int = 64
) -> np.ndarray:
    """Insertion and deletion of an image in the orders of several maps.

    Args:
        model: [B, C, H, W] → logits [B, K], in evaluation mode.
        image: [C, H, W], normalised, on the model's device.
        heats: [J, H, W].
        target: the class.
        seed: decides the order of equal values.
        micro_batch: images per forward pass.

    Returns:
        float64 [J, 2]: area under the curve of insertion and of deletion, in 0..1, by the trapezoidal rule.
    """
    import torch
    from scipy import ndimage

    size = image.shape[-1]
    blurred = ndimage.gaussian_filter(image.cpu().numpy(), (0, BLUR * size, BLUR * size))
    background = torch.from_numpy(blurred).to(image)
    places = torch.from_numpy(ranks(heats, seed)).to(image.device)
    limits = torch.arange(STEPS + 1, device=image.device) * (image.shape[-2] * size) / STEPS
    chosen = places[:, None] < limits[:, None, None]  # [J, S, H, W]
    chosen = torch.stack([chosen, ~chosen]).reshape(-1, 1, *image.shape[-2:])
    with torch.no_grad():
        scores = [model(torch.where(part, image, background)) for part in chosen.split(micro_batch)]
    prob = torch.cat(scores).double().softmax(dim=1)[:, target].reshape(2, len(heats), STEPS + 1)
    return torch.trapezoid(prob, dx=1 / STEPS).T.cpu().numpy()


def ranks(heats: np.ndarray, seed: int) -> np.ndarray:
    """The place of each pixel of maps [J, H, W] in descending order, int64 [J, H, W]; equal values in random order."""
    flat = heats.reshape(len(heats), -1)
    tie = np.random.default_rng(seed).permutation(flat.shape[1])
    order = np.stack([np.lexsort((tie, -values)) for values in flat])
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.arange(flat.shape[1])[None], axis=1)
    return places.reshape(heats.shape)
