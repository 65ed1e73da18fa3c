"""Jobs: planned micro-batches with the augmentation of each image; what a loader carries out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from brain_dist.config import AugmentConfig, DataConfig
from brain_dist.store.dataset import Dataset
from brain_dist.stream.augment import Decisions, Frames, decide, no_augmentation
from brain_dist.stream.plan import MicroBatch


@dataclass(frozen=True)
class Job:
    """One micro-batch to load: which rows, and what to do to each image."""

    micro: MicroBatch
    decisions: Decisions


def training_jobs(
    dataset: Dataset, config: DataConfig, augment: AugmentConfig, plan: Iterable[MicroBatch], *, seed: int
) -> Iterator[Job]:
    """Jobs with augmentation drawn from (seed, epoch, row)."""
    frames = Frames.of(dataset.columns, head=config.head_crop)
    for micro in plan:
        yield Job(micro, decide(augment, frames, micro.rows, seed=seed, epoch=micro.epoch, visit=micro.visit))


def evaluation_jobs(dataset: Dataset, config: DataConfig, plan: Iterable[MicroBatch]) -> Iterator[Job]:
    """Jobs without augmentation."""
    frames = Frames.of(dataset.columns, head=config.head_crop)
    for micro in plan:
        yield Job(micro, no_augmentation(frames, micro.rows))
