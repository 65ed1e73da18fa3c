"""Parameter groups, the learning rate as a function of the step, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from brain_dist.config import OptimConfig

if TYPE_CHECKING:
    import torch


def create(config: OptimConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Adam or AdamW; weight decay spares biases and normalisation weights (timm's grouping)."""
    import torch
    from timm.optim import param_groups_weight_decay

    groups = param_groups_weight_decay(model, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    # fused: one kernel for all tensors, and no extension for DeepSpeed to compile at the first step
    return kind(groups, lr=config.lr, betas=config.betas, fused=True)


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


class Ema:
    """Exponential moving average of weights and buffers, kept in fp32 whatever the weights' own type.

    The decay warms up as min(decay, (1 + n) / (10 + n)) after n updates, so that short runs are not held at their
    start.
    """

    def __init__(self, decay: float, model: torch.nn.Module) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {
            name: value.detach().float().clone() if value.is_floating_point() else value.detach().clone()
            for name, value in model.state_dict().items()
        }

    def update(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take in the weights after an optimiser step."""
        import torch

        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages, values = [], []
        for name, value in named:
            mine = self.state[name]
            if mine.is_floating_point():
                averages.append(mine)
                values.append(value.detach().to(mine))
            else:
                mine.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)
