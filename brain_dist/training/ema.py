"""The exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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
