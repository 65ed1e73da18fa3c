"""Freeze everything but the classifier for the first steps of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from brain_dist.errors import UserError
from brain_dist.networks.weights import classifier_names

if TYPE_CHECKING:
    import torch


class Freeze:
    """Trains only the classifier for the first ``steps`` optimiser steps.

    The classifier's inputs are detached, so that the backward pass ends there and gradient clipping measures only what
    trains. BatchNorm uses its running statistics and does not update them. The learning rates are set in
    :func:`brain_dist.training.optim.group_settings`. All of it depends on the step only, so a checkpoint stores nothing
    for it.

    Attributes:
        steps: number of frozen steps; with 0 the network is not changed at all.
        head: the parameters of the classifier; empty with 0 steps.
    """

    def __init__(self, model: torch.nn.Module, steps: int) -> None:
        """Find the classifier of ``model``.

        Raises:
            UserError: timm does not name the classifier of this network.
        """
        from torch.nn.modules.batchnorm import _BatchNorm

        self.steps = steps
        self.head: list[torch.nn.Parameter] = []
        self._frozen = False
        self._batchnorms: list[torch.nn.Module] = []
        if not steps:
            return
        names = classifier_names(model)
        if not names:
            raise UserError("train.freeze_epochs: timm does not name the classifier of this model.name; set it to 0")
        for name in names:
            module = model.get_submodule(name)
            module.register_forward_pre_hook(self._detach_inputs)
            self.head += list(module.parameters())
        self._batchnorms = [module for module in model.modules() if isinstance(module, _BatchNorm)]

    def before_step(self, step: int) -> None:
        """Freeze or unfreeze for ``step`` (0-based). Call before its forward pass."""
        if not self.steps:
            return
        self._frozen = step < self.steps
        for module in self._batchnorms:
            module.train(not self._frozen)

    def _detach_inputs(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return tuple(features.detach() for features in inputs) if self._frozen else None
