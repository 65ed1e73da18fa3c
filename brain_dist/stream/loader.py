"""Loaders: planned jobs in, batches on the device out, one contract (:mod:`brain_dist.stream.batch`).

``dali`` is the product, ``reference`` the plain one it is checked against, ``synthetic`` the ceiling of speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from brain_dist.config import DataConfig
from brain_dist.stream.batch import Batch, Job

if TYPE_CHECKING:
    import torch

    from brain_dist.store.dataset import Dataset


def open_loader(
    config: DataConfig, dataset: Dataset, jobs: Iterator[Job], *, augmented: bool, batch: int, device: torch.device
) -> Iterator[Batch]:
    """Batches of ``jobs`` in their order, from the loader that ``data.loader`` names.

    Args:
        config: loader, size, colour, threads.
        dataset: the shards.
        jobs: see :func:`brain_dist.stream.batch.training_jobs` and ``evaluation_jobs``.
        augmented: False leaves flip, rotation, brightness and erasing out of the graph.
        batch: images a micro-batch, B.
        device: where the batches are wanted.
    """
    if config.loader == "dali":
        from brain_dist.stream import dali

        return dali.batches(dataset, config, jobs, augmented=augmented, batch=batch, device=device)
    if config.loader == "torch":
        from brain_dist.stream import reference

        return reference.batches(dataset, config, jobs, augmented=augmented, device=device)
    from brain_dist.stream import synthetic

    return synthetic.batches(dataset, config, jobs, batch=batch, device=device)
