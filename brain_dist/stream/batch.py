"""What every loader takes and gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.config import AugmentConfig, DataConfig
from brain_dist.stream.augment import Decisions, Frames, decide, plain
from brain_dist.stream.plan import MicroBatch

if TYPE_CHECKING:
    import torch

    from brain_dist.store.dataset import Dataset


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
