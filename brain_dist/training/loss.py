"""The training loss of each sample, with label smoothing, mixup and CutMix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_dist.augmentation import augment
from brain_dist.augmentation.upload import on_device
from brain_dist.config import Config
from brain_dist.stream.batch import Batch
from brain_dist.stream.normalize import Normalize

if TYPE_CHECKING:
    import torch


def weighted_losses(network: torch.nn.Module, normalize: Normalize, batch: Batch, config: Config) -> torch.Tensor:
    """Cross-entropy of each sample times its weight.

    Returns:
        float32 [B]. A mixed pair shares one mixing weight, so the weights of its two samples keep their sum and the
        loss keeps its denominator, ``batch.micro.total_weight``.
    """
    import torch
    from torch.nn.functional import cross_entropy

    def losses(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits, label, reduction="none", label_smoothing=config.optim.label_smoothing)

    image, label, micro = normalize(batch.image), batch.label, batch.micro
    mix = augment.mix(config.augment, micro.position, micro.valid, seed=config.run.seed, step=micro.step)
    if mix is None:
        return losses(network(image).float(), label) * batch.weight
    partner = torch.arange(len(label), device=image.device) ^ 1  # positions 2k and 2k + 1 are a pair
    image, mix_weight = mix_images(image, image[partner], on_device(mix.weight, image.device), mix)
    logits = network(image).float()
    own = mix_weight * losses(logits, label) * batch.weight
    return own + (1 - mix_weight) * losses(logits, label[partner]) * batch.weight[partner]


def mix_images(
    image: torch.Tensor, partner: torch.Tensor, weight: torch.Tensor, mix: augment.Mix
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
    blend = on_device(mix.blend, image.device)
    image_share = torch.where(blend, weight, 1.0).to(image.dtype).reshape(-1, 1, 1, 1)
    image = image * image_share + partner * (1 - image_share)
    x0, y0, x1, y1 = on_device(augment.pixel_boxes(mix.box, size), image.device).T
    index = torch.arange(size, device=image.device)
    inside_x = (index >= x0[:, None]) & (index < x1[:, None])
    inside_y = (index >= y0[:, None]) & (index < y1[:, None])
    paste = (inside_y[:, :, None] & inside_x[:, None, :])[:, None]
    image = torch.where(paste, partner, image)
    pasted_share = paste.float().mean(dim=(1, 2, 3))
    return image, torch.where(blend, weight, 1 - pasted_share)
