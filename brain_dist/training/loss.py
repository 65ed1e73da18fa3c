"""The training loss of each sample, with label smoothing, mixup and CutMix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_dist.config import Config
from brain_dist.stream import augment
from brain_dist.stream.batch import Batch
from brain_dist.stream.normalize import Normalize
from brain_dist.training.mixing import mix_images

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
    mix_weight = torch.from_numpy(mix.weight).to(image.device)
    image, mix_weight = mix_images(image, image[partner], mix_weight, mix)
    logits = network(image).float()
    own = mix_weight * losses(logits, label) * batch.weight
    return own + (1 - mix_weight) * losses(logits, label[partner]) * batch.weight[partner]
