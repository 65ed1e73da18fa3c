"""The optimiser, its parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brain_dist.config import OptimConfig

if TYPE_CHECKING:
    import torch


EPSILON = 1e-8  # added to the root of Adam's second moment


def create_optimizer(
    config: OptimConfig, model: torch.nn.Module, head: Collection[torch.nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Create Adam or AdamW. Biases and normalisation weights have no weight decay (timm's parameter groups).

    Each group has ``lr_scale``, the factor on its learning rate (layer-wise decay: Bao et al., BEiT, ICLR 2022), and
    ``in_head``, whether its parameters are in ``head``, which may be trained alone first.
    """
    import torch
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    if config.layer_decay < 1:
        timm_groups = param_groups_layer_decay(model, weight_decay=config.weight_decay, layer_decay=config.layer_decay)
    else:
        timm_groups = param_groups_weight_decay(model, weight_decay=config.weight_decay)
    head_ids = {id(p) for p in head}
    groups = []
    for group in timm_groups:
        for in_head in (False, True):
            parameters = [p for p in group["params"] if (id(p) in head_ids) is in_head]
            if parameters:
                groups.append({"lr_scale": 1.0, **group, "params": parameters, "in_head": in_head})
    optimizer_class = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    # fused: one kernel for all tensors, and DeepSpeed compiles no extension at the first step
    return optimizer_class(groups, lr=config.lr, betas=config.betas, eps=EPSILON, fused=True)


@dataclass(frozen=True)
class GroupSettings:
    """The fixed settings of a parameter group, kept outside the optimiser.

    Loading a checkpoint may overwrite the settings in the optimiser's groups (DeepSpeed's universal checkpoint does at
    ZeRO-3), so the settings are written into the optimiser at every step.

    Attributes:
        lr_scale: factor on the learning rate.
        weight_decay: weight decay before any correction.
        in_head: whether the group is part of the classifier that trains alone first.
    """

    lr_scale: float
    weight_decay: float
    in_head: bool

    @classmethod
    def of(cls, group: dict[str, Any]) -> GroupSettings:
        """The settings of a group of :func:`create_optimizer`."""
        return cls(group["lr_scale"], group["weight_decay"], group["in_head"])

    def at_step(self, config: OptimConfig, lr: float, step: int, frozen_steps: int) -> dict[str, float]:
        """What to set in the optimiser's group at ``step`` (0-based), if ``frozen_steps`` train the head alone.

        Adam divides its moments by ``1 - beta ** steps``. A group that is unfrozen after ``frozen_steps`` has moments
        that are only as old as its own training, but the optimiser counts the frozen steps too. Without a correction
        its first updates would be 3 to 7 times too large. The learning rate and epsilon correct for that. The weight
        decay cancels the change of the learning rate.
        """
        if self.in_head or not frozen_steps:
            return {"lr": lr * self.lr_scale, "weight_decay": self.weight_decay}
        if step < frozen_steps:
            return {"lr": 0.0, "weight_decay": self.weight_decay}
        counted_first, counted_second = _bias_corrections(config, step + 1)
        first, second = _bias_corrections(config, step + 1 - frozen_steps)
        epsilon_factor = math.sqrt(second / counted_second)
        lr_factor = epsilon_factor * counted_first / first
        return {
            "lr": lr * self.lr_scale * lr_factor,
            "weight_decay": self.weight_decay / lr_factor if config.name == "adamw" else self.weight_decay,
            "eps": EPSILON * epsilon_factor,
        }


def _bias_corrections(config: OptimConfig, steps: int) -> tuple[float, float]:
    """Adam's divisors of its two moments after ``steps`` (Kingma & Ba, ICLR 2015, section 3)."""
    beta1, beta2 = config.betas
    return 1 - beta1**steps, 1 - beta2**steps


def learning_rate(config: OptimConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Learning rate of ``step`` (0-based): linear warm-up, then half a cosine down to ``min_lr``.

    (Loshchilov & Hutter, ICLR 2017, without restarts.) It depends on the step only, so a checkpoint does not store it.
    """
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    cosine_steps = max(steps_per_epoch * epochs - warmup_steps, 1)
    progress = min((step - warmup_steps) / cosine_steps, 1.0)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
