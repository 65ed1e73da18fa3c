"""DeepSpeed around the network: one optimiser step over planned micro-batches, under any ZeRO stage and precision."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from brain_dist.config import Config
from brain_dist.errors import UserError
from brain_dist.ranks.world import World
from brain_dist.stream import augment, counter
from brain_dist.stream.batch import Batch
from brain_dist.stream.normalize import Normalize
from brain_dist.stream.plan import accumulation
from brain_dist.training.deepspeed_setup import compute_dtype, deepspeed_config, import_deepspeed
from brain_dist.training.ema import Ema
from brain_dist.training.fragments import counters
from brain_dist.training.freeze import Freeze
from brain_dist.training.mixing import mix_images
from brain_dist.training.nonfinite import Skips
from brain_dist.training.optim import Group, create_optimizer

if TYPE_CHECKING:
    import torch


class Engine:
    """A network, its optimiser and DeepSpeed, taking one optimiser step at a time."""

    def __init__(
        self, config: Config, model: torch.nn.Module, world: World, device: torch.device, *, frozen_steps: int = 0
    ) -> None:
        """Wrap ``model`` (fp32, on the CPU, equal on every rank); its first ``frozen_steps`` train the classifier."""
        import torch

        deepspeed = import_deepspeed(world, device)
        if config.train.precision == "fp16" and not deepspeed.accelerator.get_accelerator().is_fp16_supported():
            raise UserError("train.precision=fp16: DeepSpeed has none on this device; use bf16, or amp")
        has_statistics = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules())
        if has_statistics and config.train.precision in ("bf16", "fp16"):
            raise UserError(
                f"train.precision={config.train.precision} would keep {config.model.name}'s BatchNorm statistics"
                " in 16 bits; use train.precision=amp"
            )
        self.config, self.world, self.device = config, world, device
        self.micros = accumulation(config.train.global_batch, config.train.micro_batch, world.size)
        self.normalize = Normalize(config.data, config.model.in_chans, device, compute_dtype(config.train.precision))
        self.parameters = sum(p.numel() for p in model.parameters())
        settings = deepspeed_config(config, world.size)
        model = model.to(device)
        if config.model.sync_batchnorm:
            from brain_dist.networks.batchnorm import synchronise

            model = synchronise(model, device)
        self.ema = Ema(config.optim.ema, model) if config.optim.ema else None
        self.freeze = Freeze(model, frozen_steps)
        optimizer = create_optimizer(config.optim, model, self.freeze.head)
        self.groups = [Group.of(group) for group in optimizer.param_groups]
        self.deepspeed, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=settings,
            dist_init_required=False,
        )
        if config.model.compile:
            self.module.compile()  # in place: unlike torch.compile's wrapper it leaves the weights' names as they are
        self.deepspeed.train()
        self.skips = Skips()
        # a step that is skipped must not leave its traces in BatchNorm's running statistics
        self.statistics = [b for n, b in self.module.named_buffers() if n.endswith(("running_mean", "running_var"))]
        # DeepSpeed checks the gradient at every stage and precision but this one
        self.unchecked = config.train.zero_stage == 0 and config.train.precision in ("fp32", "amp")

    @property
    def module(self) -> torch.nn.Module:
        """The network itself."""
        return self.deepspeed.module

    def step(self, batches: Sequence[Batch], lr: float) -> torch.Tensor:
        """One optimiser step over this rank's micro-batches of one global batch.

        The loss is the weighted mean over the global batch's samples, whatever ranks and micro-steps they fell to: each
        micro-batch's sum is scaled so that DeepSpeed's averaging over ranks and accumulation gives exactly that mean.

        A step whose loss or gradient is not finite, on any rank, leaves the weights, the moments, the average and
        BatchNorm's statistics as they were, and is counted in ``skips``.

        Returns:
            float32 scalar on the device: this rank's share of the mean loss; summed over ranks it is the mean.
        """
        import torch

        kept = [value.clone() for value in self.statistics]
        now = batches[0].micro.step
        self.freeze.enter(now)
        for group, ours in zip(self.deepspeed.optimizer.param_groups, self.groups, strict=True):
            group.update(ours.settings(self.config.optim, lr, now, self.freeze.steps))
        share = torch.zeros((), device=self.device)
        for batch in batches:
            micro = batch.micro
            # Dropped paths become a function of the step and of the place in the global batch, so there is no generator
            # state to save, and other ranks drop the same ones.
            torch.manual_seed(int(counter.bits(self.config.run.seed, "forward", micro.step, micro.position[0])))
            part = self._losses(batch).sum() / micro.total_weight
            share += part.detach()
            # an infinite loss can have a finite gradient; every rank must see that it is none
            certain = torch.where(part.detach().isfinite(), 1.0, torch.nan)
            self.deepspeed.backward(part * certain * (self.world.size * self.micros))
            with self._checked() if self.unchecked and batch is batches[-1] else nullcontext():
                self.deepspeed.step()
        skipped = self.grad_norm is None
        self.skips.note(skipped)
        if skipped:
            for value, before in zip(self.statistics, kept, strict=True):
                value.copy_(before)
        elif self.ema:
            self.ema.update(self.module.state_dict().items())
        return share

    @contextmanager
    def _checked(self) -> Iterator[None]:
        """Take the norm of the reduced gradient, equal on all ranks; where it is no number the optimiser rests."""
        import torch

        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        self._norm = float(torch.nn.utils.get_total_norm(gradients))
        optimiser = self.deepspeed.basic_optimizer
        groups = optimiser.param_groups
        optimiser.param_groups = groups if math.isfinite(self._norm) else []
        try:
            yield
        finally:
            optimiser.param_groups = groups

    def counters(self) -> dict[str, Any]:
        """Small numbers that a checkpoint needs beside the tensors."""
        return {**counters(self.deepspeed), "skips": dataclasses.asdict(self.skips)}

    @property
    def loss_scale(self) -> float | None:
        """fp16's loss scale; None in other precisions."""
        return float(self.deepspeed.optimizer.loss_scale) if self.config.train.precision == "fp16" else None

    def _losses(self, batch: Batch) -> torch.Tensor:
        """Loss of each sample times its weight [B], fp32."""
        import torch
        from torch.nn.functional import cross_entropy

        image, label, smooth = self.normalize(batch.image), batch.label, self.config.optim.label_smoothing
        micro = batch.micro
        mix = augment.mix(self.config.augment, micro.position, micro.valid, seed=self.config.run.seed, step=micro.step)
        if mix is None:
            plain = cross_entropy(self.deepspeed(image).float(), label, reduction="none", label_smoothing=smooth)
            return plain * batch.weight
        partner = torch.arange(len(label), device=image.device) ^ 1
        weight = torch.from_numpy(mix.weight).to(self.device)
        image, weight = mix_images(image, image[partner], weight, mix)
        logits = self.deepspeed(image).float()
        own = cross_entropy(logits, label, reduction="none", label_smoothing=smooth)
        other = cross_entropy(logits, label[partner], reduction="none", label_smoothing=smooth)
        # a pair is mixed both ways by one share, so its weights add up to what they are unmixed: the denominator stays
        return weight * own * batch.weight + (1 - weight) * other * batch.weight[partner]

    @property
    def grad_norm(self) -> float | None:
        """Norm of the last step's gradient over all ranks, before clipping; None where it was not finite."""
        norm = self._norm if self.unchecked else float(self.deepspeed.get_global_grad_norm())
        return norm if math.isfinite(norm) else None

    @contextmanager
    def evaluating(self) -> Iterator[torch.nn.Module]:
        """The network in evaluation mode, with the averaged weights where there is an average."""
        import torch

        self.agree_on_statistics()
        kept: dict[str, torch.Tensor] = {}
        if self.ema:
            kept = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
            self.module.load_state_dict(self.ema.state)
        self.deepspeed.eval()
        try:
            with torch.no_grad():
                yield self.deepspeed
        finally:
            if kept:
                self.module.load_state_dict(kept)
            self.deepspeed.train()

    def agree_on_statistics(self) -> None:
        """Average BatchNorm's running statistics over the ranks.

        DeepSpeed keeps parameters equal, not buffers. Running statistics are linear in each batch's, so averaging now
        and again later gives what averaging only later would.
        """
        import torch.distributed as dist
        from timm.utils import distribute_bn

        if self.world.size == 1:
            return
        distribute_bn(self.module, self.world.size, reduce=True)
        if self.ema:
            for name, value in self.ema.state.items():
                if name.endswith(("running_mean", "running_var")):
                    dist.all_reduce(value)
                    value /= self.world.size

    def weights(self) -> dict[str, torch.Tensor]:
        """Whole weights and buffers on the CPU, on the main rank (empty elsewhere); every rank must call."""
        import deepspeed

        self.agree_on_statistics()
        sharded = self.config.train.zero_stage == 3
        with deepspeed.zero.GatheredParameters(list(self.module.parameters()), enabled=sharded):
            if not self.world.is_main:
                return {}
            return {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()}
