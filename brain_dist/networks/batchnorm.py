"""BatchNorm over the images of all ranks, for micro-batches too small to be normalised alone.

On a GPU these are torch's layers, put in place by timm. Torch's have CUDA kernels only and refuse the CPU, so there the
same arithmetic is written out on a differentiable all-reduce. Weights and statistics keep their names, so a checkpoint
does not know which kind it came from.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """``model`` with each BatchNorm layer, timm's with an activation too, exchanged for one that spans all ranks."""
    if device.type != "cpu":
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)
    if isinstance(model, _BatchNorm):
        return SyncBatchNorm(model)
    for name, child in model.named_children():
        setattr(model, name, synchronise(child, device))
    return model


class SyncBatchNorm(_BatchNorm):
    """[B, C, …] → the same shape, normalised in training by mean and variance over the batches of all ranks."""

    def __init__(self, replaced: _BatchNorm) -> None:
        """Take over the weights, statistics and, of timm's layers, dropout and activation of ``replaced``."""
        momentum, affine, tracked = replaced.momentum, replaced.affine, replaced.track_running_stats
        super().__init__(replaced.num_features, replaced.eps, momentum, affine, tracked)
        self.load_state_dict(replaced.state_dict())
        self.train(replaced.training)
        self.drop = getattr(replaced, "drop", torch.nn.Identity())
        self.act = getattr(replaced, "act", torch.nn.Identity())

    def _check_input_dim(self, input: torch.Tensor) -> None:
        pass  # any number of dimensions will do

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise, then timm's dropout and activation."""
        made = self._over_all_ranks(input) if self.training else super().forward(input)
        return self.act(self.drop(made))

    def _over_all_ranks(self, input: torch.Tensor) -> torch.Tensor:
        channels = input.shape[1]
        shape, axes = (1, channels) + (1,) * (input.ndim - 2), [d for d in range(input.ndim) if d != 1]
        x = input.float()
        count = torch.full((1,), float(x.numel() // channels))
        total = _AllReduce.apply(torch.cat([x.sum(axes), count]))
        n, mean = total[-1].detach(), total[:-1] / total[-1]
        # about the common mean and in a second round: a difference of large sums would lose the small variances
        variance = _AllReduce.apply((x - mean.reshape(shape)).square().sum(axes)) / n
        if self.track_running_stats:
            self._follow(mean.detach(), variance.detach() * n / (n - 1))
        made = (x - mean.reshape(shape)) * torch.rsqrt(variance + self.eps).reshape(shape)
        if self.affine:
            made = made * self.weight.float().reshape(shape) + self.bias.float().reshape(shape)
        return made.to(input.dtype)

    def _follow(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Update the running statistics; momentum None is the plain average of all batches."""
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _AllReduce(torch.autograd.Function):
    """Sum over all ranks, of values and, backwards, of gradients: each rank's loss depends on each one's images."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        value = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(value)
        return value
