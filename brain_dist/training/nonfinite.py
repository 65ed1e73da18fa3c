"""Steps with a non-finite loss or gradient: skip them, count them, and stop after several in a row."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.common.files import write_atomically
from brain_dist.config import TrainConfig
from brain_dist.errors import Fault

if TYPE_CHECKING:
    import numpy as np
    import torch

    from brain_dist.ranks.world import World
    from brain_dist.stream.batch import Batch

NONFINITE = "nonfinite"  # folder in a run's with the images of the step at which the training ended


@dataclass
class SkippedSteps:
    """Counts steps that were skipped because their loss or gradient was not finite.

    Attributes:
        total: skipped steps of the whole run.
        in_a_row: skipped steps in a row, up to the last step.
    """

    total: int = 0
    in_a_row: int = 0

    def count(self, skipped: bool) -> None:
        """Count one step."""
        self.total += skipped
        self.in_a_row = self.in_a_row + 1 if skipped else 0


class GradientCheck:
    """Norm of the gradient, and the check that skips an optimiser step with a non-finite gradient.

    DeepSpeed does both, except at ZeRO stage 0 in fp32 and amp: there :meth:`guard` does. Whether a step is skipped is
    decided on the host, so each step waits once for its gradients, between the backward pass and the update.

    Attributes:
        skipped: whether the last step was skipped.
    """

    def __init__(self, deepspeed: Any, config: TrainConfig) -> None:
        self._deepspeed = deepspeed
        self._by_deepspeed = config.zero_stage > 0 or config.precision in ("bf16", "fp16")
        self._norm: torch.Tensor | None = None
        self._norm_factor = 1.0
        self.skipped = False
        # In fp16, DeepSpeed divides the gradient by the loss scale, but at stage 0 it does not multiply the loss by it
        self._scales_loss = config.precision != "fp16" or config.zero_stage > 0
        # DeepSpeed searches every gradient for NaN and infinity; the norm, which it computes next, shows them too
        if config.zero_stage in (1, 2):
            deepspeed.optimizer.check_overflow = lambda **_: None
        elif hasattr(deepspeed.optimizer, "overflow_checker"):  # stage 0 in 16 bits
            deepspeed.optimizer.overflow_checker.check = lambda: False
        if hasattr(getattr(deepspeed.optimizer, "loss_scaler", None), "raise_error_at_min_scale"):
            deepspeed.optimizer.loss_scaler.raise_error_at_min_scale = False  # ``train.skip_limit`` ends the run

    @property
    def loss_factor(self) -> float:
        """What to multiply the loss of the next step by, because DeepSpeed will divide its gradient by it."""
        return 1.0 if self._scales_loss else float(self._deepspeed.optimizer.loss_scale)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Wrap the ``step()`` of DeepSpeed that updates the weights: a non-finite gradient updates nothing.

        The gradients are already reduced, so all ranks decide the same.
        """
        import torch

        if self._by_deepspeed:
            self._norm_factor = self.loss_factor  # a step may change it
            yield
            self.skipped = not self._deepspeed.was_step_applied()
            return
        gradients = [p.grad for p in self._deepspeed.module.parameters() if p.grad is not None]
        self._norm = torch.nn.utils.get_total_norm(gradients)
        self.skipped = not math.isfinite(float(self._norm))
        optimizer = self._deepspeed.basic_optimizer
        groups = optimizer.param_groups
        if self.skipped:
            optimizer.param_groups = []
        try:
            yield
        finally:
            optimizer.param_groups = groups

    @property
    def norm(self) -> torch.Tensor:
        """Norm of the last step's gradient over all ranks, before clipping: a scalar, which may be on the device."""
        import torch

        norm = self._deepspeed.get_global_grad_norm() / self._norm_factor if self._by_deepspeed else self._norm
        return norm if isinstance(norm, torch.Tensor) else torch.tensor(norm, dtype=torch.float64)


def nan_if_infinite(loss: torch.Tensor) -> torch.Tensor:
    """The scalar ``loss``, or NaN if it is infinite: an infinite loss can have a finite gradient, NaN cannot."""
    import torch

    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


def raise_nonfinite(
    run_folder: Path, step: int, skipped: SkippedSteps, batches: Sequence[Batch], keys: np.ndarray, world: World
) -> None:
    """Save what this rank loaded for ``step``, then stop the run.

    Writes ``nonfinite/step-S-rank-R.safetensors`` with image (uint8 [B, C, H, W]), label, row and valid of the step's
    micro-batches, concatenated, and beside it a .json with the keys of the samples.

    Args:
        run_folder: folder of the run.
        step: the last skipped step.
        skipped: the run's counts.
        batches: the micro-batches of ``step`` on this rank.
        keys: str [N], the key column of the index.
        world: this rank.

    Raises:
        Fault: always.
    """
    import torch
    from safetensors.torch import save

    folder = run_folder / NONFINITE
    folder.mkdir(exist_ok=True)
    file = folder / f"step-{step:08d}-rank-{world.rank:05d}.safetensors"
    tensors = {
        name: torch.cat([getattr(batch, name).cpu() for batch in batches]).contiguous()
        for name in ("image", "label", "row", "valid")
    }
    write_atomically(file, save(tensors))
    sample_keys = [str(keys[row]) for row in tensors["row"].tolist()]
    write_atomically(file.with_suffix(".json"), json.dumps(sample_keys, indent=1) + "\n")
    raise Fault(
        f"loss or gradient was not finite in {skipped.in_a_row} steps in a row, up to step {step}; the images of that"
        f" step are in {folder}; lower optim.lr, or set train.precision=amp or fp32"
    )
