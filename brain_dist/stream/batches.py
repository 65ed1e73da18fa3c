"""Batches of one rank, or of a whole split: plan, jobs and loader in one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.augmentation.augment import Frames, decide, no_augmentation
from brain_dist.augmentation.style import draw_style
from brain_dist.augmentation.transplants import Transplants, wanted
from brain_dist.config import AugmentConfig, Balance, Config, DataConfig
from brain_dist.ranks.world import World
from brain_dist.store.dataset import Dataset
from brain_dist.stream.batch import Batch, Job
from brain_dist.stream.normalize import Normalize
from brain_dist.stream.plan import MicroBatch, TrainingPlan, evaluation_micro_batches

if TYPE_CHECKING:
    import torch

_BLOCK = 1024  # a draw for 1,024 samples takes 1.5 times as long as one for 16


def training_batches(
    config: Config, dataset: Dataset, world: World, device: torch.device, *, first_step: int
) -> Iterator[Batch]:
    """The micro-batches of this rank from ``first_step`` to the end of training."""
    micro_batches = training_plan(config, dataset).micro_batches(world.rank, world.size, first_step)
    jobs = training_jobs(dataset, config.data, config.augment, micro_batches, seed=config.run.seed)
    micro_batch = config.train.micro_batch
    return open_loader(config.data, dataset, jobs, augmented=True, micro_batch=micro_batch, device=device)


def training_plan(config: Config, dataset: Dataset) -> TrainingPlan:
    """The order of samples of a training."""
    rows, train = dataset.rows("train"), config.train
    return TrainingPlan(
        rows=rows,
        shard=np.unique(dataset.columns["shard"][rows], return_inverse=True)[1],
        label=_balanced_classes(dataset, rows, train.balance),
        seed=config.run.seed,
        epochs=train.epochs,
        global_batch=train.global_batch,
        micro_batch=train.micro_batch,
        window=config.data.window,
        balance=train.balance,
    )


def _balanced_classes(dataset: Dataset, rows: np.ndarray, balance: Balance) -> np.ndarray:
    """What counts equally: the class of each row, or its class and collection; int64 [N]."""
    label = dataset.columns["label"][rows].astype(np.int64)
    if balance != "collections":
        return label
    _, collection = np.unique(dataset.columns["dataset"][rows].astype(str), return_inverse=True)
    return collection * len(dataset.classes) + label


def evaluation_batches(
    config: DataConfig,
    dataset: Dataset,
    rows: np.ndarray,
    *,
    micro_batch: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """This rank's part of ``rows`` (int64 [N]) without augmentation, each row once over all ranks.

    All ranks take the same number of micro-batches; ``Batch.valid`` is False for padding.
    """
    plan = evaluation_micro_batches(rows, micro_batch=micro_batch, rank=rank, world_size=world_size)
    jobs = evaluation_jobs(dataset, config, plan)
    return open_loader(config, dataset, jobs, augmented=False, micro_batch=micro_batch, device=device)


def batches(
    dataset: Dataset,
    split: str = "train",
    *,
    batch_size: int = 32,
    normalize: bool = True,
    device: str = "cpu",
    **settings: Any,
) -> Iterator[Batch]:
    """Iterate a split once, in the order of the index and without augmentation, in one process and without a run.

    Args:
        dataset: an opened shard folder.
        split: train, val or test.
        batch_size: images per batch; the last batch may be smaller.
        normalize: True yields the network's input, float32 [B, 3, H, W]; False yields the decoded images, uint8
            [B, C, H, W], where C is 1 for ``color="gray"`` and 3 for ``color="rgb"``.
        device: torch device of the batches.
        settings: fields of :class:`~brain_dist.config.DataConfig`, such as ``size=128``, ``color="rgb"``,
            ``loader="torch"`` or ``head_crop=True``.
    """
    import torch

    config, target = DataConfig(**settings), torch.device(device)
    normalizer = Normalize(config, 3, target, torch.float32)
    for batch in evaluation_batches(config, dataset, dataset.rows(split), micro_batch=batch_size, device=target):
        batch = batch.without_padding()
        yield replace(batch, image=normalizer(batch.image)) if normalize else batch


def training_jobs(
    dataset: Dataset, config: DataConfig, augment: AugmentConfig, plan: Iterable[MicroBatch], *, seed: int
) -> Iterator[Job]:
    """Jobs with augmentation and transplants drawn from (seed, epoch, row).

    The decisions of about ``_BLOCK`` samples are drawn at once, for as many micro-batches as that is.

    Raises:
        UserError: transplants are wanted, and the shards lack what they need.
    """
    frames = Frames.of(dataset.columns, head=config.head_crop)
    transplants = Transplants(dataset, augment) if wanted(augment) else None
    micro_batches = iter(plan)
    for first in micro_batches:
        block = [first, *islice(micro_batches, _BLOCK // len(first.rows))]
        rows, visit = (np.concatenate([getattr(micro, name) for micro in block]) for name in ("rows", "visit"))
        epoch = np.repeat([micro.epoch for micro in block], [len(micro.rows) for micro in block])
        decisions = decide(augment, frames, rows, seed=seed, epoch=epoch, visit=visit)
        drawn = transplants.draw(rows, seed=seed, epoch=epoch, visit=visit) if transplants else [None] * len(rows)
        style = draw_style(augment, rows, seed=seed, epoch=epoch, visit=visit)
        stop = 0
        for micro in block:
            start, stop = stop, stop + len(micro.rows)
            own = {place: each for place, each in enumerate(drawn[start:stop]) if each is not None}
            look = None if style is None else style.part(start, stop)
            yield Job(micro, decisions.part(start, stop), own, look, config.stretch)


def evaluation_jobs(dataset: Dataset, config: DataConfig, plan: Iterable[MicroBatch]) -> Iterator[Job]:
    """Jobs without augmentation."""
    frames = Frames.of(dataset.columns, head=config.head_crop)
    for micro in plan:
        yield Job(micro, no_augmentation(frames, micro.rows), stretched=config.stretch)


def open_loader(
    config: DataConfig,
    dataset: Dataset,
    jobs: Iterator[Job],
    *,
    augmented: bool,
    micro_batch: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Batches of ``jobs`` in their order, from the loader that ``data.loader`` names.

    Args:
        config: loader, input size, colour, threads, prefetching.
        dataset: the shards.
        jobs: see :func:`training_jobs` and :func:`evaluation_jobs`.
        augmented: False if the jobs only crop and resize, which saves the operations after that.
        micro_batch: images per micro-batch, B.
        device: device of the batches.
    """
    config = _with_loader(config, device)
    if config.loader == "opencv":
        from brain_dist.stream import opencv_loader

        return opencv_loader.batches(dataset, config, jobs, augmented=augmented, device=device)
    if config.loader == "dali":
        from brain_dist.stream import dali_loader

        return dali_loader.batches(dataset, config, jobs, augmented=augmented, micro_batch=micro_batch, device=device)
    if config.loader == "torch":
        from brain_dist.stream import torch_loader

        return torch_loader.batches(dataset, config, jobs, augmented=augmented, device=device)
    return _synthetic_batches(dataset, config, jobs, micro_batch, device)


def with_loader(config: Config, device: torch.device) -> Config:
    """The configuration with the loader that ``data.loader=auto`` means on this device."""
    return replace(config, data=_with_loader(config.data, device))


def _with_loader(config: DataConfig, device: torch.device) -> DataConfig:
    if config.loader != "auto":
        return config
    return replace(config, loader="dali" if device.type == "cuda" else "opencv")


def _synthetic_batches(
    dataset: Dataset, config: DataConfig, jobs: Iterator[Job], micro_batch: int, device: torch.device
) -> Iterator[Batch]:
    """The rows and labels of ``jobs``, all with the same images of noise, which stay on the device."""
    import torch

    shape = (micro_batch, 1 if config.color == "gray" else 3, config.size, config.size)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
    for job in jobs:
        yield job.batch(image, dataset.columns["label"])
