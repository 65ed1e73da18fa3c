"""What every loader takes and gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.config import DataConfig
from brain_dist.data.augment import AugmentConfig, Decisions, Frames, decide, plain
from brain_dist.data.plan import MicroBatch

if TYPE_CHECKING:
    import torch

    from brain_dist.data.index import Dataset


@dataclass(frozen=True)
class Job:
    """One micro-batch to load: which rows, and what to do to each."""

    micro: MicroBatch
    decisions: Decisions


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device.

    Attributes:
        image: uint8 [B, C, H, W]; C is 1 (data.color=gray) or 3. :class:`Finish` makes it the network's input.
        label: int64 [B].
        row: int64 [B], row of the index.
        valid: bool [B], False on padding.
        weight: float32 [B], weight in the loss, 0 on padding.
        micro: the plan's micro-batch that this is.
    """

    image: torch.Tensor
    label: torch.Tensor
    row: torch.Tensor
    valid: torch.Tensor
    weight: torch.Tensor
    micro: MicroBatch

    @classmethod
    def of(cls, image: torch.Tensor, micro: MicroBatch, labels: np.ndarray) -> Batch:
        """Put labels and plan beside an image tensor, on its device."""
        import torch

        def put(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(image.device, non_blocking=True)

        return cls(image, put(labels[micro.rows]), put(micro.rows), put(micro.valid), put(micro.weight), micro)


def training_jobs(
    dataset: Dataset, config: DataConfig, augment: AugmentConfig, plan: Iterator[MicroBatch], *, seed: int
) -> Iterator[Job]:
    """Augmented jobs: every decision drawn from (seed, epoch, row and visit)."""
    frames = Frames.of(dataset.columns, head=config.head_crop)
    for micro in plan:
        yield Job(micro, decide(augment, frames, micro.rows, seed=seed, epoch=micro.epoch, visit=micro.draw))


def evaluation_jobs(dataset: Dataset, config: DataConfig, plan: Iterator[MicroBatch]) -> Iterator[Job]:
    """Plain jobs: the whole frame, resized."""
    frames = Frames.of(dataset.columns, head=config.head_crop)
    for micro in plan:
        yield Job(micro, plain(frames, micro.rows))


class Finish:
    """uint8 [B, 1 or 3, H, W] → the network's input [B, in_chans, H, W], on the device.

    Normalising one gray channel with three means and deviations widens it in the same operation, so a gray image
    crosses memory as one channel until the very last step.
    """

    def __init__(self, config: DataConfig, in_chans: int, device: torch.device, dtype: torch.dtype) -> None:
        import torch

        mean, std = torch.tensor(config.mean), torch.tensor(config.std)
        if in_chans == 1:
            mean, std = mean.mean().reshape(1), std.mean().reshape(1)
        self.scale = (1 / (255 * std)).reshape(1, -1, 1, 1).to(device)
        self.offset = (-mean / std).reshape(1, -1, 1, 1).to(device)
        self.dtype = dtype

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Normalise, widen, cast; channels-last, which convolutions want (and all ZeRO stages accept of an input)."""
        import torch

        made = torch.addcmul(self.offset, image.float(), self.scale)
        return made.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def gray(self, made: torch.Tensor) -> np.ndarray:
        """Undo the normalisation: uint8 [B, H, W], for showing to a person."""
        undone = (made.float() - self.offset) / self.scale
        return undone.mean(dim=1).round().clamp(0, 255).to("cpu").numpy().astype(np.uint8)
