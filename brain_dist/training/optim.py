"""The optimiser, its parameter groups and their settings as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Collection
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


def group_settings(
    group: dict[str, Any], config: OptimConfig, lr: float, step: int, frozen_steps: int
) -> dict[str, float]:
    """What to set in the optimiser's group at ``step`` (0-based), if ``frozen_steps`` train the head alone.

    Adam divides its moments by ``1 - beta ** steps``. A group that is unfrozen after ``frozen_steps`` has moments
    that are only as old as its own training, but the optimiser counts the frozen steps too. Without a correction
    its first updates would be 3 to 7 times too large. The learning rate and epsilon correct for that. The weight
    decay cancels the change of the learning rate.

    Args:
        group: the group as :func:`create_optimizer` returned it.
        config: the optimiser's settings.
        lr: learning rate before the factors of the groups.
        step: optimiser steps done.
        frozen_steps: steps at the start that train only the head.
    """
    group_lr, weight_decay = lr * group["lr_scale"], group["weight_decay"]
    if group["in_head"] or not frozen_steps:
        return {"lr": group_lr, "weight_decay": weight_decay}
    if step < frozen_steps:  # no weight decay: Adam's would go into the moments, which must stay zero
        return {"lr": 0.0, "weight_decay": 0.0}
    counted_first, counted_second = _bias_corrections(config, step + 1)
    first, second = _bias_corrections(config, step + 1 - frozen_steps)
    epsilon_factor = math.sqrt(second / counted_second)
    lr_factor = epsilon_factor * counted_first / first
    return {
        "lr": group_lr * lr_factor,
        "weight_decay": weight_decay / lr_factor if config.name == "adamw" else weight_decay,
        "eps": EPSILON * epsilon_factor,
    }


def _bias_corrections(config: OptimConfig, steps: int) -> tuple[float, float]:
    """Adam's divisors of its two moments after ``steps`` (Kingma & Ba, ICLR 2015, section 3)."""
    beta1, beta2 = config.betas
    return 1 - beta1**steps, 1 - beta2**steps
