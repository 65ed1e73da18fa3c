"""Train the classifier alone at first, on features that stay as they were loaded; then everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from brain_dist.errors import UserError
from brain_dist.networks.weights import classifiers

if TYPE_CHECKING:
    import torch


class Freeze:
    """Holds everything but the classifier still during the first ``steps`` optimiser steps.

    The features are cut off from the classifier's gradient, so that the backward pass ends there and clipping measures
    what trains; BatchNorm uses its running statistics and leaves them alone. The optimiser's share is in
    :meth:`brain_dist.training.optim.Group.settings`. All of it is a function of the
    step: nothing to save, nothing to restore.
    """

    def __init__(self, model: torch.nn.Module, steps: int) -> None:
        """Find the classifier of ``model``; UserError where timm knows none. With no ``steps`` nothing is touched."""
        from torch.nn.modules.batchnorm import _BatchNorm

        self.steps = steps
        self.active = False
        self.head: list[torch.nn.Parameter] = []
        if not steps:
            return
        names = classifiers(model)
        if not names:
            raise UserError("train.freeze_epochs: timm names no classifier of this model.name; set it to 0")
        for name in names:
            module = model.get_submodule(name)
            module.register_forward_pre_hook(self._cut)
            self.head += list(module.parameters())
        self.normalising = [module for module in model.modules() if isinstance(module, _BatchNorm)]

    def enter(self, step: int) -> None:
        """Before the forward pass of ``step`` (0-based)."""
        if not self.steps:
            return
        self.active = step < self.steps
        for module in self.normalising:
            module.train(not self.active)

    def _cut(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return tuple(features.detach() for features in inputs) if self.active else None
