"""Open a loader: jobs in, batches on the device out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from brain_dist.config import DataConfig
from brain_dist.store.dataset import Dataset
from brain_dist.stream.batch import Batch
from brain_dist.stream.jobs import Job

if TYPE_CHECKING:
    import torch


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
        jobs: see :func:`~brain_dist.stream.jobs.training_jobs` and :func:`~brain_dist.stream.jobs.evaluation_jobs`.
        augmented: False if the jobs only crop and resize, which saves the other operations.
        micro_batch: images per micro-batch, B.
        device: device of the batches.
    """
    if config.loader == "dali":
        from brain_dist.stream import dali_loader

        return dali_loader.batches(dataset, config, jobs, augmented=augmented, micro_batch=micro_batch, device=device)
    if config.loader == "torch":
        from brain_dist.stream import torch_loader

        return torch_loader.batches(dataset, config, jobs, augmented=augmented, device=device)
    from brain_dist.stream import synthetic_loader

    return synthetic_loader.batches(dataset, config, jobs, micro_batch=micro_batch, device=device)
