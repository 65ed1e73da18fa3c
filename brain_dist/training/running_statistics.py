"""BatchNorm's running statistics: equal on all ranks, and unchanged by skipped steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_dist.ranks.world import World
from brain_dist.training.ema import Ema

if TYPE_CHECKING:
    import torch

_SUFFIXES = ("running_mean", "running_var")


class RunningStatistics:
    """The running means and variances of a network, and of its EMA if there is one."""

    def __init__(self, module: torch.nn.Module, ema: Ema | None, world: World) -> None:
        self._module, self._ema, self._world = module, ema, world
        self._buffers = [buffer for name, buffer in module.named_buffers() if name.endswith(_SUFFIXES)]

    def copy(self) -> list[torch.Tensor]:
        """Copies [C] of the network's statistics, for :meth:`restore`."""
        return [buffer.clone() for buffer in self._buffers]

    def restore(self, copies: list[torch.Tensor]) -> None:
        """Set the network's statistics to the ``copies`` [C] that :meth:`copy` returned."""
        for buffer, value in zip(self._buffers, copies, strict=True):
            buffer.copy_(value)

    def average_over_ranks(self) -> None:
        """Replace the statistics on each rank by their mean over all ranks. Every rank must call.

        DeepSpeed keeps parameters equal, but not buffers. Running statistics are linear in the statistics of each
        batch, so averaging now and again later gives the same result as averaging only later.
        """
        import torch.distributed as dist
        from timm.utils import distribute_bn

        if self._world.size == 1:
            return
        distribute_bn(self._module, self._world.size, reduce=True)
        for name, value in self._ema.state.items() if self._ema else ():
            if name.endswith(_SUFFIXES):
                dist.all_reduce(value)
                value /= self._world.size
