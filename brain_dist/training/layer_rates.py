"""Learning rates that differ between the layers of one parameter group.

timm puts each layer into its own parameter group for layer-wise learning rates: 76 groups for ConvNeXt-Base. DeepSpeed
flattens, reduces, checks and updates every group on its own, and waits for the device in each. Here all layers share a
group and its rate. After an update each layer goes back a part of the way, ``w = new + (1 - factor) * (old - new)``.
An update of Adam and AdamW is proportional to the rate, so that is the update at ``factor`` times the rate, up to
rounding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brain_dist.training.fragments import master_weights

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Parts:
    """Parts of a flattened tensor, between gaps that are left alone.

    Attributes:
        lengths: elements of gap, part, gap, part, …, gap.
        weights: 1 - factor of each part.
    """

    lengths: list[int]
    weights: list[float]

    @classmethod
    def of(cls, positions: list[tuple[int, int, float]], size: int) -> _Parts:
        """Parts (first element, number of elements, 1 - factor) in order, of a tensor with ``size`` elements."""
        lengths, stop = [], 0
        for start, count, _ in positions:
            lengths += [start - stop, count]
            stop = start + count
        return cls([*lengths, size - stop], [weight for *_, weight in positions])

    def cut(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """Views of the parts, made by one call: 344 of ``narrow`` would cost milliseconds."""
        return tensor.view(-1).split(self.lengths)[1::2]


class LayerRates:
    """Reduces the updates of DeepSpeed's optimiser to each parameter's own learning rate."""

    def __init__(self, deepspeed: Any, factors: dict[str, float]) -> None:
        """Install the correction.

        Args:
            deepspeed: DeepSpeed's engine, after its initialisation.
            factors: factor on the learning rate of each parameter, 0 to 1, by the parameter's name.
        """
        # tensor of the optimiser → its parts (first element, number of elements, 1 - factor) with a factor below 1
        parts: defaultdict[torch.Tensor, list[tuple[int, int, float]]] = defaultdict(list)
        for name, _, count, flat, offset in master_weights(deepspeed):
            if factors[name] < 1:
                parts[flat].append((offset, count, 1 - factors[name]))
        self._parts = {flat: _Parts.of(sorted(positions), flat.numel()) for flat, positions in parts.items()}
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

        after: list[torch.Tensor] = []
        before: list[torch.Tensor] = []
        weights: list[float] = []
        for tensor, old in self._before:
            parts = self._parts[tensor]
            after += parts.cut(tensor.detach())
            before += parts.cut(old)
            weights += parts.weights
        if after:
            torch._foreach_lerp_(after, before, weights)
        self._before = []
