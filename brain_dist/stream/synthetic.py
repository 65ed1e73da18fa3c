"""Noise that lies on the device already: what training would run at if loading cost nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.config import DataConfig
from brain_dist.store.dataset import Dataset
from brain_dist.stream.batch import Batch, Job

if TYPE_CHECKING:
    import torch


def batches(
    dataset: Dataset, config: DataConfig, jobs: Iterator[Job], *, batch: int, device: torch.device
) -> Iterator[Batch]:
    """The plan's rows and labels beside one and the same batch of noise."""
    import torch

    channels = 1 if config.color == "gray" else 3
    maker = torch.Generator().manual_seed(0)
    shape = (batch, channels, config.size, config.size)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=maker).to(device)
    labels = dataset.columns["label"].astype(np.int64)
    for job in jobs:
        yield Batch.of(image, job.micro, labels)
