"""The reference loader: PIL, torch and worker processes. Short and slow; the tests compare DALI's pixels with it."""

from __future__ import annotations

import errno
import io
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.common.workers import exit_with_parent, start_worker_server
from brain_dist.config import DataConfig
from brain_dist.errors import Fault
from brain_dist.store.dataset import Dataset
from brain_dist.store.reader import ShardReader
from brain_dist.stream.augment import Decisions, pixel_boxes
from brain_dist.stream.batch import Batch, Job

if TYPE_CHECKING:
    import torch


def batches(
    dataset: Dataset, config: DataConfig, jobs: Iterator[Job], *, augmented: bool, device: torch.device
) -> Iterator[Batch]:
    """Batches of ``jobs``; each worker process loads one job at a time.

    Raises:
        Fault: a worker process ended, or could not be started.
    """
    import torch.utils.data

    pending: deque[Job] = deque()

    def sampler() -> Iterator[Job]:
        for job in jobs:
            pending.append(job)
            yield job

    loader: torch.utils.data.DataLoader[torch.Tensor] = torch.utils.data.DataLoader(
        _Images(dataset, config, augmented=augmented),  # type: ignore[arg-type]
        batch_size=None,
        sampler=sampler(),
        num_workers=config.threads,
        prefetch_factor=config.prefetch,
        pin_memory=device.type == "cuda",
        # forking a process that already runs the threads of gloo and DeepSpeed may deadlock
        multiprocessing_context="forkserver",
        worker_init_fn=exit_with_parent,
    )
    start_worker_server()
    # torch's destructor would print a traceback if the first process could not be started
    torch.utils.data.dataloader._MultiProcessingDataLoaderIter._shutdown = True
    try:
        for image in loader:
            if isinstance(image, Fault):
                raise image
            yield Batch.of(image.to(device, non_blocking=True), pending.popleft().micro, dataset.columns["label"])
    except (RuntimeError, OSError) as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None
        if not full and not str(error).startswith("DataLoader worker"):
            raise
        reason = str(error).partition(". ")[0]
        raise Fault(
            f"a loading process ended or did not start ({reason}): it lacked memory, or space in /dev/shm, through"
            " which it hands over images; lower data.threads or data.prefetch, or give the container more"
            " (docker run --shm-size=8g)"
        ) from error


class _Images:
    """Map a job to its images, uint8 [B, C, H, W]. Picklable, because each worker process has a copy."""

    def __init__(self, dataset: Dataset, config: DataConfig, *, augmented: bool) -> None:
        self.reader = ShardReader(dataset)
        self.size = config.size
        self.mode = "L" if config.color == "gray" else "RGB"
        self.augmented = augmented

    def __getitem__(self, job: Job) -> torch.Tensor | Fault:
        import torch

        rows_and_crops = zip(job.micro.rows.tolist(), job.decisions.crop.tolist(), strict=True)
        try:
            image = torch.stack([self._decode(row, *crop) for row, crop in rows_and_crops])
        except Fault as error:  # torch would add a traceback to its text
            return error
        return _augment(image, job.decisions) if self.augmented else image

    def _decode(self, row: int, x: int, y: int, width: int, height: int) -> torch.Tensor:
        """Decode an image, crop it and resize the crop: uint8 [C, H, W]."""
        import torch
        from PIL import Image

        with Image.open(io.BytesIO(self.reader.read(row)), formats=("JPEG", "PNG")) as file:
            image = file.convert(self.mode)
        # PIL's bilinear filter widens when it shrinks an image, like DALI's with antialias=True
        box = (x, y, x + width, y + height)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        return torch.from_numpy(np.array(image)).reshape(self.size, self.size, -1).permute(2, 0, 1)


def _augment(image: torch.Tensor, decisions: Decisions) -> torch.Tensor:
    """Apply everything but the crop to uint8 [B, C, H, W]."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    grid = affine_grid(torch.from_numpy(decisions.affine), list(image.shape), align_corners=False)
    warped = grid_sample(image.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False).round()
    gain, shift = (torch.from_numpy(value).reshape(-1, 1, 1, 1) for value in (decisions.gain, decisions.shift))
    result = (warped * gain + shift * 255).round().clamp(0, 255)
    for i, (left, top, right, bottom) in enumerate(pixel_boxes(decisions.erase, image.shape[-1]).tolist()):
        result[i, :, top:bottom, left:right] = 0
    return result.to(torch.uint8)
