"""The plain loader: PIL, torch and worker processes. Slow, short, and what DALI's pixels are compared with."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.config import DataConfig
from brain_dist.store.dataset import Dataset
from brain_dist.store.reader import ShardReader
from brain_dist.stream.augment import pixel_boxes
from brain_dist.stream.batch import Batch, Job

if TYPE_CHECKING:
    import torch


class Decoder:
    """job → uint8 [B, C, H, W]; picklable, so that worker processes can hold one each."""

    def __init__(self, dataset: Dataset, config: DataConfig, *, augmented: bool) -> None:
        self.reader = ShardReader(dataset)
        self.config = config
        self.augmented = augmented

    def __getitem__(self, job: Job) -> torch.Tensor:
        import torch

        image = torch.stack([self._cut(int(row), job.decisions.crop[i]) for i, row in enumerate(job.micro.rows)])
        return self._augment(image, job) if self.augmented else image

    def _cut(self, row: int, crop: np.ndarray) -> torch.Tensor:
        import torch
        from PIL import Image

        x, y, width, height = (int(value) for value in crop)
        with Image.open(io.BytesIO(self.reader.read(row))) as opened:
            mode = "L" if self.config.color == "gray" else "RGB"
            picture = opened.convert(mode)
        size = self.config.size
        # bilinear resampling in PIL widens its filter when it shrinks, as DALI's antialiased one does
        picture = picture.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + width, y + height))
        return torch.from_numpy(np.array(picture)).reshape(size, size, -1).permute(2, 0, 1)

    def _augment(self, image: torch.Tensor, job: Job) -> torch.Tensor:
        import torch
        from torch.nn.functional import affine_grid, grid_sample

        what = job.decisions
        count, _, _, width = image.shape
        grid = affine_grid(torch.from_numpy(what.affine), list(image.shape), align_corners=False)
        made = grid_sample(image.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False).round()
        gain, shift = (torch.from_numpy(value).reshape(count, 1, 1, 1) for value in (what.gain, what.shift))
        made = (made * gain + shift * 255).round().clamp(0, 255)
        for index, (left, top, right, bottom) in enumerate(pixel_boxes(what.erase, width).tolist()):
            made[index, :, top:bottom, left:right] = 0
        return made.to(torch.uint8)


def batches(
    dataset: Dataset, config: DataConfig, jobs: Iterator[Job], *, augmented: bool, device: torch.device
) -> Iterator[Batch]:
    """One job a worker process at a time, in the plan's order."""
    import torch.utils.data

    pending: deque[Job] = deque()

    def remembered() -> Iterator[Job]:
        for job in jobs:
            pending.append(job)
            yield job

    loader: torch.utils.data.DataLoader[torch.Tensor] = torch.utils.data.DataLoader(
        Decoder(dataset, config, augmented=augmented),  # type: ignore[arg-type]
        batch_size=None,
        sampler=remembered(),
        num_workers=config.threads,
        prefetch_factor=config.prefetch,
        pin_memory=device.type == "cuda",
        # forking a process that already runs gloo's and DeepSpeed's threads may hang
        multiprocessing_context="forkserver",
    )
    labels = dataset.columns["label"].astype(np.int64)
    for image in loader:
        yield Batch.of(image.to(device, non_blocking=True), pending.popleft().micro, labels)
