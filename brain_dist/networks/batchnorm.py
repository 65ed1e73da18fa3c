"""BatchNorm over the images of all ranks, for micro-batches that are too small to be normalised separately.

On a GPU these are torch's layers, inserted by timm. Torch's layers have CUDA kernels only, so on the CPU the same
arithmetic runs on a differentiable all-reduce. Weights and statistics keep their names, so a checkpoint is independent
of the kind of layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm


def convert_sync_batchnorm(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Replace each BatchNorm layer of ``model``, also timm's with an activation, by one that spans all ranks."""
    if device.type != "cpu":
        from timm.layers import convert_sync_batchnorm as convert_on_gpu

        return convert_on_gpu(model)
    if isinstance(model, _BatchNorm):
        return SyncBatchNorm(model)
    for name, child in model.named_children():
        setattr(model, name, convert_sync_batchnorm(child, device))
    return model


class SyncBatchNorm(_BatchNorm):
    """[B, C, …] → the same shape; in training normalised by mean and variance over the batches of all ranks."""

    def __init__(self, layer: _BatchNorm) -> None:
        """Take over the weights, the statistics and, of timm's layers, dropout and activation of ``layer``."""
        super().__init__(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        self.load_state_dict(layer.state_dict())
        self.train(layer.training)
        self.drop = getattr(layer, "drop", torch.nn.Identity())
        self.act = getattr(layer, "act", torch.nn.Identity())

    def _check_input_dim(self, input: torch.Tensor) -> None:
        pass  # any number of dimensions is valid

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise [B, C, …], then apply timm's dropout and activation."""
        output = self._normalize_over_ranks(input) if self.training else super().forward(input)
        return self.act(self.drop(output))

    def _normalize_over_ranks(self, input: torch.Tensor) -> torch.Tensor:
        channels = input.shape[1]
        shape, axes = (1, channels) + (1,) * (input.ndim - 2), [d for d in range(input.ndim) if d != 1]
        x = input.float()
        count = torch.full((1,), float(x.numel() // channels))
        sums = _AllReduce.apply(torch.cat([x.sum(axes), count]))
        n, mean = sums[-1].detach(), sums[:-1] / sums[-1]
        # a second all-reduce about the common mean: a difference of large sums would lose small variances
        variance = _AllReduce.apply((x - mean.reshape(shape)).square().sum(axes)) / n
        if self.track_running_stats:
            self._update_running_statistics(mean.detach(), variance.detach() * n / (n - 1))
        output = (x - mean.reshape(shape)) * torch.rsqrt(variance + self.eps).reshape(shape)
        if self.affine:
            output = output * self.weight.float().reshape(shape) + self.bias.float().reshape(shape)
        return output.to(input.dtype)

    def _update_running_statistics(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Momentum None is the plain average of all batches, as in torch."""
        batches = self.get_buffer("num_batches_tracked").add_(1)
        weight = 1 / float(batches) if self.momentum is None else self.momentum
        self.get_buffer("running_mean").lerp_(mean, weight)
        self.get_buffer("running_var").lerp_(variance, weight)


class _AllReduce(torch.autograd.Function):
    """Sum over all ranks, also of gradients: each rank's loss depends on the images of all ranks."""

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
