"""What lies at the rim of the head made black, as a rough removal of the skull does it.

Collections differ in scalp, skull and what is outside the head, and some are published without the skull.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from brain_dist.augmentation.upload import on_device

if TYPE_CHECKING:
    import torch

TISSUE = 0.1  # of an image's 99th percentile: what is brighter is tissue
WIDTH = (0.03, 0.08)  # of the image's side, how far into the head is black


def remove_rim(width: npt.NDArray[np.float64], image: torch.Tensor) -> torch.Tensor:
    """Make the rim of each head black.

    The head is what has tissue on all four sides, along its row and along its column. An edge of the image of which the
    head takes more than half is not its outline: a crop inside the head loses nothing there.

    Args:
        width: float64 [B], of the rim, as a share of the image's side.
        image: uint8 [B, C, H, W].

    Returns:
        uint8 [B, C, H, W]. An image that would be black as a whole is kept.
    """
    import torch
    from torch.nn.functional import max_pool2d, pad

    gray = image.float().mean(1, keepdim=True)
    bright = gray.flatten(1).kthvalue(max(1, round(0.99 * gray[0].numel())), dim=1).values
    tissue = gray > TISSUE * bright[:, None, None, None]
    inside = torch.ones_like(tissue)
    for axis in (2, 3):
        counts = tissue.int().cumsum(axis)
        inside &= (counts > 0) & (counts - tissue.int() < counts.select(axis, -1).unsqueeze(axis))
    radius = np.maximum(1, np.rint(width * image.shape[-1])).astype(np.int64)
    outside = pad((~inside).float(), (1, 1, 1, 1))
    for edge, beside in (
        (outside[:, :, 0], inside[:, :, 0]), (outside[:, :, -1], inside[:, :, -1]),
        (outside[:, :, :, 0], inside[:, :, :, 0]), (outside[:, :, :, -1], inside[:, :, :, -1]),
    ):  # fmt: skip
        edge += (beside.float().mean(-1, keepdim=True) < 0.5).float()
    depth = torch.zeros_like(gray)  # of a pixel in the head, in pixels from its outline
    for _ in range(int(radius.max())):  # before the upload: the host does not wait for the device
        outside = max_pool2d(outside, 3, stride=1, padding=1)
        depth += outside[:, :, 1:-1, 1:-1] == 0
    kept = depth >= on_device(radius, image.device)[:, None, None, None]
    kept |= ~kept.flatten(1).any(1)[:, None, None, None]
    return image * kept
