"""Learning rates that differ between the layers of one parameter group.

timm puts each layer into its own parameter group for layer-wise learning rates: 76 groups for ConvNeXt-Base. DeepSpeed
flattens, reduces, checks and updates every group on its own, and waits for the device in each. Here all layers share a
group and its rate. After an update each layer goes back a part of the way, ``w = new + (1 - factor) * (old - new)``.
An update of Adam and AdamW is proportional to the rate, so that is the update at ``factor`` times the rate, up to
rounding.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from brain_dist.training.fragments import master_weights

if TYPE_CHECKING:
    import torch


class LayerRates:
    """Reduces the updates of DeepSpeed's optimiser to each parameter's own learning rate."""

    def __init__(self, deepspeed: Any, factors: dict[str, float]) -> None:
        """Install the correction.

        Args:
            deepspeed: DeepSpeed's engine, after its initialisation.
            factors: factor on the learning rate of each parameter, 0 to 1, by the parameter's name.
        """
        # tensor of the optimiser → its parts (first element, number of elements, 1 - factor) with a factor below 1
        self._parts: defaultdict[torch.Tensor, list[tuple[int, int, float]]] = defaultdict(list)
        for name, _, count, flat, offset in master_weights(deepspeed):
            if factors[name] < 1:
                self._parts[flat].append((offset, count, 1 - factors[name]))
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []
        if self._parts:
            deepspeed.basic_optimizer.register_step_pre_hook(self._remember)
            deepspeed.basic_optimizer.register_step_post_hook(self._go_back)

    def _remember(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        # DeepSpeed updates one group at a time
        updated = [tensor for group in optimizer.param_groups for tensor in group["params"] if tensor.grad is not None]
        self._before = [(tensor, tensor.detach().clone()) for tensor in updated if tensor in self._parts]

    def _go_back(self, *_: object) -> None:
        import torch

        after, before, weights = [], [], []
        for tensor, old in self._before:
            for offset, count, weight in self._parts[tensor]:
                after.append(tensor.detach().view(-1).narrow(0, offset, count))
                before.append(old.view(-1).narrow(0, offset, count))
                weights.append(weight)
        if after:
            torch._foreach_lerp_(after, before, weights)
        self._before = []
