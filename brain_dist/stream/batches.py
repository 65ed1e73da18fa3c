"""Batches for one rank: those of a training, and those of chosen rows for an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.config import Config, DataConfig

if TYPE_CHECKING:
    import torch

    from brain_dist.ranks.world import World
    from brain_dist.store.dataset import Dataset
    from brain_dist.stream.batch import Batch


def training_batches(
    config: Config, dataset: Dataset, world: World, device: torch.device, *, first_step: int
) -> Iterator[Batch]:
    """This rank's micro-batches from ``first_step`` to the end of training."""
    from brain_dist.stream import plan
    from brain_dist.stream.batch import training_jobs
    from brain_dist.stream.loader import open_loader

    rows, train = dataset.rows("train"), config.train
    planned = plan.training(
        rows,
        np.unique(dataset.columns["shard"][rows], return_inverse=True)[1],
        seed=config.run.seed,
        epochs=train.epochs,
        global_batch=train.global_batch,
        micro_batch=train.micro_batch,
        rank=world.rank,
        world=world.size,
        first_step=first_step,
        window=config.data.window,
        label=dataset.columns["label"][rows].astype(np.int64),
        balance=train.balance,
    )
    jobs = training_jobs(dataset, config.data, config.augment, planned, seed=config.run.seed)
    return open_loader(config.data, dataset, jobs, augmented=True, batch=train.micro_batch, device=device)


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
    """This rank's share of ``rows`` (int64 [N]), unaugmented, each row once over all ranks.

    All ranks take the same number of micro-batches; ``Batch.valid`` is False where a row only fills one up.
    """
    from brain_dist.stream import plan
    from brain_dist.stream.batch import evaluation_jobs
    from brain_dist.stream.loader import open_loader

    planned = plan.evaluation(rows, micro_batch=micro_batch, rank=rank, world=world_size)
    jobs = evaluation_jobs(dataset, config, planned)
    return open_loader(config, dataset, jobs, augmented=False, batch=micro_batch, device=device)
