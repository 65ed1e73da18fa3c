"""The reference loader: PIL, torch and worker processes. Short and slow; tests compare the other loaders with it."""

from __future__ import annotations

import errno
import io
import os
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.augmentation.augment import Decisions, pixel_boxes
from brain_dist.common.workers import exit_with_parent, start_worker_server, use_one_opencv_thread
from brain_dist.config import DataConfig
from brain_dist.errors import Fault
from brain_dist.store.dataset import Dataset
from brain_dist.stream.batch import Batch, Job
from brain_dist.stream.decoding import EncodedImages
from brain_dist.stream.pixels import JPEG_REDUCTION, brightness_tables

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
        worker_init_fn=_start_loading_process,
    )
    start_worker_server()
    # torch's destructor would print a traceback if the first process could not be started
    torch.utils.data.dataloader._MultiProcessingDataLoaderIter._shutdown = True
    try:
        for image in loader:
            if isinstance(image, Fault):
                raise image
            yield pending.popleft().batch(image.to(device, non_blocking=True), dataset.columns["label"])
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


def _start_loading_process(*_: object) -> None:
    """Let this loading process end with its rank, and at once if it cannot hand over an image."""
    from multiprocessing.queues import Queue

    exit_with_parent()
    use_one_opencv_thread()
    # multiprocessing would print a traceback and leave the rank waiting for the image
    setattr(Queue, "_on_queue_feeder_error", staticmethod(lambda *_: os._exit(1)))  # noqa: B010 (mypy)


class _Images:
    """Map a job to its images, uint8 [B, C, H, W]. Picklable, because each worker process has a copy."""

    def __init__(self, dataset: Dataset, config: DataConfig, *, augmented: bool) -> None:
        self.encoded = EncodedImages(dataset, config.size, color=config.color == "rgb")
        self.size = config.size
        self.mode = "L" if config.color == "gray" else "RGB"
        self.augmented = augmented

    def __getitem__(self, job: Job) -> torch.Tensor | Fault:
        import torch

        try:
            encoded = self.encoded.read(job)
        except Fault as error:  # torch would add a traceback to its text
            return error
        sampling = encoded.sampling
        reduced = [
            self._decode(image, reduction, region)
            for image, reduction, region in zip(
                encoded.images, sampling.reduction.tolist(), sampling.region.tolist(), strict=True
            )
        ]
        image = torch.stack([_sample(*pair, self.size) for pair in zip(reduced, sampling.matrix, strict=True)])
        return _augment(image, job.decisions) if self.augmented else image

    def _decode(self, encoded: bytes, reduction: int, region: list[int]) -> torch.Tensor:
        """The region of a reduced image: float32 [C, h, w]."""
        import torch
        from PIL import Image
        from torch.nn.functional import avg_pool2d, pad

        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as file:
            width, height = file.size
            decoded = min(reduction, JPEG_REDUCTION) if file.format == "JPEG" else 1
            file.draft(self.mode, (width // decoded, height // decoded))  # decode a JPEG at 1/decoded
            image = torch.from_numpy(np.array(file.convert(self.mode))).float()
        image = image.reshape(*image.shape[:2], -1).permute(2, 0, 1)
        factor = reduction // decoded
        image = pad(image, (0, -image.shape[2] % factor, 0, -image.shape[1] % factor), mode="replicate")
        left, top, right, bottom = region
        return avg_pool2d(image, factor).round()[:, top:bottom, left:right]


def _sample(image: torch.Tensor, matrix: np.ndarray, size: int) -> torch.Tensor:
    """Sample float32 [C, h, w] at the points that float64 [2, 3] maps the output's pixels to: uint8 [C, size, size]."""
    import torch
    from torch.nn.functional import grid_sample

    centres = torch.arange(size, dtype=torch.float64) + 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ torch.from_numpy(matrix).T
    extent = torch.tensor([image.shape[2], image.shape[1]])
    grid = (2 * points / extent - 1).float()[None]  # grid_sample's edges are at -1 and 1
    return grid_sample(image[None], grid, "bilinear", "zeros", align_corners=False)[0].round().to(torch.uint8)


def _augment(image: torch.Tensor, decisions: Decisions) -> torch.Tensor:
    """Brightness, contrast and erasing of uint8 [B, C, H, W]."""
    import torch

    tables = torch.from_numpy(brightness_tables(decisions))
    result = torch.stack([table[pixels.long()] for table, pixels in zip(tables, image, strict=True)])
    for i, (left, top, right, bottom) in enumerate(pixel_boxes(decisions.erase, image.shape[-1]).tolist()):
        result[i, :, top:bottom, left:right] = 0
    return result
