"""Parameter groups, the learning rate as a function of the step, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brain_dist.config import OptimConfig

if TYPE_CHECKING:
    import torch


EPSILON = 1e-8  # Adam's, added to the root of the second moment


def create_optimizer(
    config: OptimConfig, model: torch.nn.Module, head: Collection[torch.nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Adam or AdamW; weight decay spares biases and normalisation weights (timm's grouping).

    Each group carries ``lr_scale``, its share of the learning rate (layer-wise decay: Bao et al., BEiT, ICLR 2022).
    Where a ``head`` is trained first, no group holds parameters of both, and ``in_head`` says which.
    """
    import torch
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    if config.layer_decay < 1:
        grouped = param_groups_layer_decay(model, weight_decay=config.weight_decay, layer_decay=config.layer_decay)
    else:
        grouped = param_groups_weight_decay(model, weight_decay=config.weight_decay)
    known = {id(p) for p in head}
    groups = []
    for group in grouped:
        for in_head in (False, True):
            chosen = [p for p in group["params"] if (id(p) in known) is in_head]
            if chosen:
                groups.append({"lr_scale": 1.0, **group, "params": chosen, "in_head": in_head})
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    # fused: one kernel for all tensors, and no extension for DeepSpeed to compile at the first step
    return kind(groups, lr=config.lr, betas=config.betas, eps=EPSILON, fused=True)


@dataclass(frozen=True)
class Group:
    """What a parameter group is trained with, kept apart from the optimiser.

    A checkpoint that is loaded writes settings of its own into the optimiser's groups (ZeRO-3's universal one those of
    the first group into all), so they are set anew at each step.
    """

    lr_scale: float
    weight_decay: float
    in_head: bool

    @classmethod
    def of(cls, group: dict[str, Any]) -> Group:
        """As :func:`create` made it."""
        return cls(group["lr_scale"], group["weight_decay"], group["in_head"])

    def settings(self, config: OptimConfig, lr: float, step: int, frozen_steps: int) -> dict[str, float]:
        """``lr`` and ``weight_decay`` of ``step`` (0-based), of which the first ``frozen_steps`` train the head alone.

        Adam divides its moments by ``1 - beta ** steps``. A group that thaws late has moments as young as its own
        training, but the optimiser counts the frozen steps too: uncorrected, its first updates would be 3 to 7 times
        too large. Rate and epsilon make up for it, and the decay for the rate.
        """
        if self.in_head or not frozen_steps:
            return {"lr": lr * self.lr_scale, "weight_decay": self.weight_decay}
        if step < frozen_steps:
            return {"lr": 0.0, "weight_decay": self.weight_decay}
        counted, own = (_bias_correction(config, steps) for steps in (step + 1, step + 1 - frozen_steps))
        second = math.sqrt(own[1] / counted[1])
        factor = second * counted[0] / own[0]
        return {
            "lr": lr * self.lr_scale * factor,
            "weight_decay": self.weight_decay / factor if config.name == "adamw" else self.weight_decay,
            "eps": EPSILON * second,
        }


def _bias_correction(config: OptimConfig, steps: int) -> tuple[float, float]:
    """What Adam divides its two moments by after ``steps`` (Kingma & Ba, ICLR 2015, section 3)."""
    first, second = config.betas
    return 1 - first**steps, 1 - second**steps


def learning_rate(config: OptimConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Learning rate of ``step`` (0-based): linear warm-up, then half a cosine to ``min_lr``.

    (Loshchilov & Hutter, ICLR 2017, without restarts.) A pure function of the step, so that nothing has to be restored.
    """
    warm = round(config.warmup_epochs * steps_per_epoch)
    if step < warm:
        return config.lr * (step + 1) / warm
    total = max(steps_per_epoch * epochs - warm, 1)
    share = min((step - warm) / total, 1.0)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * share))
