"""The optimiser, its parameter groups and their settings as a function of the step."""

from __future__ import annotations

import math
from collections import defaultdict
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

    Each group has ``in_head``, whether its parameters are in ``head``, which may be trained alone first. The factors of
    :func:`layer_factors` are not applied.
    """
    import torch

    head_ids = {id(p) for p in head}
    parameters: defaultdict[tuple[float, bool], list[torch.nn.Parameter]] = defaultdict(list)
    for group in _timm_groups(config, model):
        for parameter in group["params"]:
            parameters[group["weight_decay"], id(parameter) in head_ids].append(parameter)
    groups = [
        {"params": members, "weight_decay": weight_decay, "in_head": in_head}
        for (weight_decay, in_head), members in parameters.items()
    ]
    optimizer_class = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    # fused: one kernel for all tensors, and DeepSpeed compiles no extension at the first step
    return optimizer_class(groups, lr=config.lr, betas=config.betas, eps=EPSILON, fused=True)


def layer_factors(config: OptimConfig, model: torch.nn.Module) -> dict[str, float]:
    """The factor on the learning rate of each parameter, by its name: 1 for the classifier, less for earlier layers.

    Layer-wise decay: Bao et al., BEiT, ICLR 2022.
    """
    factors = {id(p): group.get("lr_scale", 1.0) for group in _timm_groups(config, model) for p in group["params"]}
    return {name: factors[id(p)] for name, p in model.named_parameters() if p.requires_grad}


def _timm_groups(config: OptimConfig, model: torch.nn.Module) -> list[dict[str, Any]]:
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    if config.layer_decay < 1:
        return param_groups_layer_decay(model, weight_decay=config.weight_decay, layer_decay=config.layer_decay)
    return param_groups_weight_decay(model, weight_decay=config.weight_decay)


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
        lr: learning rate of the step.
        step: optimiser steps done.
        frozen_steps: steps at the start that train only the head.
    """
    weight_decay = group["weight_decay"]
    if group["in_head"] or not frozen_steps:
        return {"lr": lr, "weight_decay": weight_decay}
    if step < frozen_steps:  # no weight decay: Adam's would go into the moments, which must stay zero
        return {"lr": 0.0, "weight_decay": 0.0}
    counted_first, counted_second = _bias_corrections(config, step + 1)
    first, second = _bias_corrections(config, step + 1 - frozen_steps)
    epsilon_factor = math.sqrt(second / counted_second)
    lr_factor = epsilon_factor * counted_first / first
    return {
        "lr": lr * lr_factor,
        "weight_decay": weight_decay / lr_factor if config.name == "adamw" else weight_decay,
        "eps": EPSILON * epsilon_factor,
    }


def _bias_corrections(config: OptimConfig, steps: int) -> tuple[float, float]:
    """Adam's divisors of its two moments after ``steps`` (Kingma & Ba, ICLR 2015, section 3)."""
    beta1, beta2 = config.betas
    return 1 - beta1**steps, 1 - beta2**steps
