"""One optimiser step with DeepSpeed, under any ZeRO stage and precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from brain_dist.common import counter
from brain_dist.config import Config
from brain_dist.errors import UserError
from brain_dist.networks.create import has_batchnorm
from brain_dist.ranks.world import World
from brain_dist.stream.batch import Batch
from brain_dist.stream.normalize import Normalize
from brain_dist.stream.plan import accumulation_steps
from brain_dist.training.deepspeed_setup import compute_dtype, deepspeed_config, import_deepspeed
from brain_dist.training.ema import Ema
from brain_dist.training.fragments import optimizer_counters, undo_initial_step
from brain_dist.training.freeze import Freeze
from brain_dist.training.layer_rates import LayerRates
from brain_dist.training.loss import weighted_losses
from brain_dist.training.nonfinite import GradientCheck, SkippedSteps, nan_if_infinite
from brain_dist.training.optim import create_optimizer, group_settings, layer_factors

if TYPE_CHECKING:
    import torch

_STATISTICS = ("running_mean", "running_var")  # last parts of the names of BatchNorm's running statistics


class Engine:
    """A network, its optimiser and DeepSpeed.

    Attributes:
        deepspeed: DeepSpeed's engine.
        accumulation_steps: micro-batches per rank and optimiser step.
        normalize: turns loaded images into the network's input.
        parameters: number of parameters.
        ema: averaged weights; None if ``optim.ema`` is 0.
        skipped: counts of skipped steps.
    """

    def __init__(
        self, config: Config, model: torch.nn.Module, world: World, device: torch.device, *, frozen_steps: int = 0
    ) -> None:
        """Wrap ``model``, which must be in fp32, on the CPU and equal on all ranks.

        ``train.precision`` is not auto any more, see :func:`~brain_dist.training.precision.resolve_precision`.
        The first ``frozen_steps`` optimiser steps train only its classifier.

        Raises:
            UserError: the precision does not suit the device or the network.
        """
        deepspeed = import_deepspeed(world, device)
        if config.train.precision == "fp16" and not deepspeed.accelerator.get_accelerator().is_fp16_supported():
            raise UserError("train.precision=fp16: DeepSpeed does not support it on this device; use bf16 or amp")
        _check_batchnorm_precision(config, model)
        self.config, self.world, self.device = config, world, device
        self.accumulation_steps = accumulation_steps(config.train.global_batch, config.train.micro_batch, world.size)
        self.normalize = Normalize(config.data, config.model.in_chans, device, compute_dtype(config.train.precision))
        self.parameters = sum(p.numel() for p in model.parameters())
        settings = deepspeed_config(config, world.size)
        model = model.to(device)
        if config.model.sync_batchnorm:
            from brain_dist.networks.batchnorm import convert_sync_batchnorm

            model = convert_sync_batchnorm(model, device)
        self.ema = Ema(config.optim.ema, model) if config.optim.ema else None
        self._freeze = Freeze(model, frozen_steps)
        optimizer = create_optimizer(config.optim, model, self._freeze.head)
        factors = layer_factors(config.optim, model)
        # kept here, as loading a checkpoint may overwrite those in the optimiser
        self._groups = [{**group, "params": None} for group in optimizer.param_groups]
        self.deepspeed, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=settings, dist_init_required=False
        )
        undo_initial_step(self.deepspeed)
        LayerRates(self.deepspeed, factors)
        if config.model.compile:
            self.module.compile()  # in place, so that the names of the weights stay the same
        self.deepspeed.train()
        self._weights_and_buffers = self.module.state_dict(keep_vars=True)
        self._statistics = [buffer for name, buffer in self.module.named_buffers() if name.endswith(_STATISTICS)]
        self.skipped = SkippedSteps()
        self._gradient_check = GradientCheck(self.deepspeed, config.train)

    @property
    def module(self) -> torch.nn.Module:
        """The network itself."""
        return self.deepspeed.module

    @property
    def grad_norm(self) -> torch.Tensor:
        """Norm of the last step's gradient over all ranks, before clipping: a scalar; reading it waits for the GPU."""
        return self._gradient_check.norm

    @property
    def loss_scale(self) -> float | None:
        """Loss scale of fp16; None in other precisions."""
        return float(self.deepspeed.optimizer.loss_scale) if self.config.train.precision == "fp16" else None

    def step(self, batches: Sequence[Batch], lr: float) -> torch.Tensor:
        """One optimiser step over this rank's micro-batches of one global batch.

        The loss is the weighted mean over the samples of the global batch. Each micro-batch's sum of losses is scaled
        so that DeepSpeed's averaging over ranks and micro-steps gives exactly that mean, whatever the world size.

        If the loss or gradient of any rank is not finite, the step changes neither weights, moments, EMA nor BatchNorm
        statistics, and ``skipped`` counts it.

        Args:
            batches: ``accumulation_steps`` micro-batches.
            lr: learning rate before the factors of the layers.

        Returns:
            float32 scalar on the device, this rank's share of the mean loss: the sum over all ranks is the mean loss.
        """
        import torch

        statistics = [buffer.clone() for buffer in self._statistics]
        self._prepare_step(batches[0].micro.step, lr)
        factor = self.world.size * self.accumulation_steps * self._gradient_check.loss_factor
        loss_share = torch.zeros((), device=self.device)
        for batch in batches:
            self._seed_dropout(batch)
            loss = weighted_losses(self.deepspeed, self.normalize, batch, self.config).sum() / batch.micro.total_weight
            loss_share += loss.detach()
            self.deepspeed.backward(nan_if_infinite(loss) * factor)
            with self._gradient_check.guard() if batch is batches[-1] else nullcontext():
                self.deepspeed.step()
        skip = self._gradient_check.skipped
        self.skipped.count(skip)
        if skip:
            for buffer, value in zip(self._statistics, statistics, strict=True):
                buffer.copy_(value)
        elif self.ema:
            self.ema.update(self._weights_and_buffers.items())
        return loss_share

    def _prepare_step(self, step: int, lr: float) -> None:
        self._freeze.before_step(step)
        for group, initial in zip(self.deepspeed.optimizer.param_groups, self._groups, strict=True):
            group.update(group_settings(initial, self.config.optim, lr, step, self._freeze.steps))

    def _seed_dropout(self, batch: Batch) -> None:
        """Make dropout and dropped paths depend only on the step and the position in the global batch.

        So a checkpoint stores no generator state, and ranks drop different paths.
        """
        import torch

        micro = batch.micro
        seed = int(counter.bits(self.config.run.seed, "forward", micro.step, micro.position[0]))
        # torch.manual_seed would ask for every kind of device, which takes a hundred times as long
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index].manual_seed(seed)

    def average_statistics(self) -> None:
        """Replace BatchNorm's running statistics on each rank by their mean over all ranks. Every rank must call.

        DeepSpeed keeps parameters equal, but not buffers. Running statistics are linear in the statistics of each
        batch, so averaging now and again later gives the same result as averaging only later.
        """
        import torch.distributed as dist
        from timm.utils import distribute_bn

        if self.world.size == 1:
            return
        distribute_bn(self.module, self.world.size, reduce=True)
        for name, value in self.ema.state.items() if self.ema else ():
            if name.endswith(_STATISTICS):
                dist.all_reduce(value)
                value /= self.world.size

    @contextmanager
    def evaluating(self) -> Iterator[torch.nn.Module]:
        """The network in evaluation mode, with the EMA weights if there are any. Every rank must call.

        It is not compiled: another graph would take minutes, and this way it computes as ``brain_dist.evaluate`` does.
        """
        import torch

        self.average_statistics()
        eager = torch.compiler.set_stance("force_eager") if self.config.model.compile else nullcontext()
        with eager, self.ema.applied_to(self.module) if self.ema else nullcontext():
            self.deepspeed.eval()
            try:
                with torch.no_grad():
                    yield self.deepspeed
            finally:
                self.deepspeed.train()

    def weights(self) -> dict[str, torch.Tensor]:
        """Weights and buffers on the CPU, unsharded (any shape [...]); empty on all but the main rank.

        Every rank must call.
        """
        import deepspeed

        self.average_statistics()
        sharded = self.config.train.zero_stage == 3
        with deepspeed.zero.GatheredParameters(list(self.module.parameters()), enabled=sharded):
            if not self.world.is_main:
                return {}
            return {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()}

    def counters(self) -> dict[str, Any]:
        """The numbers that a checkpoint stores besides the tensors."""
        return {**optimizer_counters(self.deepspeed), "skips": dataclasses.asdict(self.skipped)}


def _check_batchnorm_precision(config: Config, model: torch.nn.Module) -> None:
    precision = config.train.precision
    if precision in ("bf16", "fp16") and has_batchnorm(model):
        raise UserError(
            f"train.precision={precision} would keep the BatchNorm statistics of {config.model.name} in 16 bits;"
            " use train.precision=amp"
        )
