"""Exponential moving average (EMA) of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Ema:
    """Exponential moving average of weights and buffers, in fp32 whatever the precision of the weights.

    After n updates the decay is min(decay, (1 + n) / (10 + n)): this warm-up lets the average of a short run forget
    the initial weights.

    Attributes:
        decay: the largest decay.
        updates: number of updates so far.
        state: averaged value of each entry of the network's state dict.
    """

    def __init__(self, decay: float, model: torch.nn.Module) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {
            name: value.detach().float().clone() if value.is_floating_point() else value.detach().clone()
            for name, value in model.state_dict().items()
        }
        self._fp32: dict[str, torch.Tensor] = {}  # room for weights of 16 bits

    def update(self, named_values: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Add the weights and buffers (any shape [...]) after an optimiser step. Integer buffers are copied."""
        import torch

        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages, values, low, fp32 = [], [], [], []
        for name, value in named_values:
            average = self.state[name]
            if not average.is_floating_point():
                average.copy_(value)
                continue
            averages.append(average)
            values.append(value.detach())
            if value.dtype != average.dtype:
                if name not in self._fp32:
                    self._fp32[name] = torch.empty_like(average)
                low.append(values[-1])
                fp32.append(self._fp32[name])
                values[-1] = fp32[-1]
        if low:  # one kernel for all tensors
            torch._foreach_copy_(fp32, low)
        torch._foreach_lerp_(averages, values, 1 - decay)

    @contextmanager
    def applied_to(self, model: torch.nn.Module) -> Iterator[None]:
        """Replace the weights and buffers of ``model`` by their averages for the length of a block."""
        original = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.state)
        try:
            yield
        finally:
            model.load_state_dict(original)
