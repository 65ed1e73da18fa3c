"""Mixup and CutMix on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_dist.stream.augment import Mix, pixel_boxes

if TYPE_CHECKING:
    import torch


def mix_images(
    image: torch.Tensor, partner: torch.Tensor, weight: torch.Tensor, mix: Mix
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend each image with its partner (mixup), or paste a box of the partner into it (CutMix).

    Args:
        image: [B, C, H, W], the network's input.
        partner: [B, C, H, W], the partner of each image.
        weight: float32 [B], ``mix.weight`` on the device.
        mix: which images are blended, and the boxes to paste.

    Returns:
        The mixed images [B, C, H, W], and the weight of each image's own label [B]. For CutMix the weight is the share
        of pixels that were not pasted.
    """
    import torch

    size = image.shape[-1]
    blend = torch.from_numpy(mix.blend).to(image.device)
    image_share = torch.where(blend, weight, 1.0).to(image.dtype).reshape(-1, 1, 1, 1)
    image = image * image_share + partner * (1 - image_share)
    x0, y0, x1, y1 = torch.from_numpy(pixel_boxes(mix.box, size)).to(image.device).T
    index = torch.arange(size, device=image.device)
    inside_x = (index >= x0[:, None]) & (index < x1[:, None])
    inside_y = (index >= y0[:, None]) & (index < y1[:, None])
    paste = (inside_y[:, :, None] & inside_x[:, None, :])[:, None]
    image = torch.where(paste, partner, image)
    pasted_share = paste.float().mean(dim=(1, 2, 3))
    return image, torch.where(blend, weight, 1 - pasted_share)
