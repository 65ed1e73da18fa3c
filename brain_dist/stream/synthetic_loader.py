"""Noise instead of images: the speed of training if loading cost nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.config import DataConfig
from brain_dist.store.dataset import Dataset
from brain_dist.stream.batch import Batch
from brain_dist.stream.jobs import Job

if TYPE_CHECKING:
    import torch


def batches(
    dataset: Dataset, config: DataConfig, jobs: Iterator[Job], *, micro_batch: int, device: torch.device
) -> Iterator[Batch]:
    """The rows and labels of ``jobs``, all with the same images of noise, which stay on the device."""
    import torch

    channels = 1 if config.color == "gray" else 3
    shape = (micro_batch, channels, config.size, config.size)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
    labels = dataset.columns["label"].astype(np.int64)
    for job in jobs:
        yield Batch.of(image, job.micro, labels)
