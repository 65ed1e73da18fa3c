"""Blend or paste each image of a batch with its partner (mixup, CutMix), on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_dist.stream import augment

if TYPE_CHECKING:
    import torch


def mix_images(
    image: torch.Tensor, other: torch.Tensor, weight: torch.Tensor, mix: augment.Mix
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend or paste the partner; returns the images and the own label's weights, exact to the pixel for CutMix."""
    import torch

    size = image.shape[-1]
    blend = torch.from_numpy(mix.blend).to(image.device)
    share = torch.where(blend, weight, 1.0).to(image.dtype).reshape(-1, 1, 1, 1)
    image = image * share + other * (1 - share)
    x0, y0, x1, y1 = torch.from_numpy(augment.pixel_boxes(mix.box, size)).to(image.device).T
    at = torch.arange(size, device=image.device)
    inside_x = (at >= x0[:, None]) & (at < x1[:, None])
    inside_y = (at >= y0[:, None]) & (at < y1[:, None])
    paste = (inside_y[:, :, None] & inside_x[:, None, :])[:, None]
    image = torch.where(paste, other, image)
    pasted = paste.float().mean(dim=(1, 2, 3))
    return image, torch.where(blend, weight, 1 - pasted)
