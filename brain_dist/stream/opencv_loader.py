"""The loader for CPUs: OpenCV on threads of this process.

Its functions release Python's lock, so the threads decode in parallel and no image is copied between processes. An
image takes three calls, whose cost :mod:`brain_dist.stream.pixels` keeps low: a reduced decoding, one warp, one table.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from brain_dist.augmentation.augment import pixel_boxes
from brain_dist.config import DataConfig
from brain_dist.errors import Fault
from brain_dist.store.dataset import Dataset
from brain_dist.store.reader import read_ahead
from brain_dist.stream.batch import Batch, Job
from brain_dist.stream.decoding import Encoded, EncodedImages, decode_reduced
from brain_dist.stream.image import Pixels, sample
from brain_dist.stream.pixels import brightness_tables

if TYPE_CHECKING:
    import torch


def batches(
    dataset: Dataset, config: DataConfig, jobs: Iterator[Job], *, augmented: bool, device: torch.device
) -> Iterator[Batch]:
    """Batches of ``jobs``, read ahead and prepared ``config.prefetch`` ahead by threads that end with the iterator.

    Raises:
        Fault: a shard or one of its images is damaged.
    """
    images = _Images(dataset, config, augmented=augmented)
    samples = read_ahead(images.encoded.read, jobs, config.prefetch)
    pool = ThreadPoolExecutor(config.threads, "images")
    pending: deque[_PendingBatch] = deque()
    try:
        while True:
            # one batch more than are to be ahead while the caller works on the one that is yielded
            while len(pending) <= config.prefetch and (sample := next(samples, None)) is not None:
                pending.append(_PendingBatch.start(*sample, images, pool, config, pinned=device.type == "cuda"))
            if not pending:
                return
            batch = pending.popleft()
            image = batch.finish().to(device, non_blocking=True)
            if config.color == "rgb":  # gray images get their other channels here, on the device
                image = image.expand(-1, 3, -1, -1)
            yield batch.job.batch(image, dataset.columns["label"])
    finally:
        samples.close()
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _PendingBatch:
    """A batch that threads are making.

    Attributes:
        job: what is loaded.
        planes: uint8 [B, H, W], the gray images.
        parts: for each thread's part, its colour images uint8 [H, W, 3] by their place in the batch.
    """

    job: Job
    planes: torch.Tensor
    parts: list[Future[dict[int, Pixels]]]

    @classmethod
    def start(
        cls,
        job: Job,
        encoded: Encoded,
        images: _Images,
        pool: ThreadPoolExecutor,
        config: DataConfig,
        *,
        pinned: bool,
    ) -> _PendingBatch:
        """Divide a job and its encoded images among the threads."""
        import torch

        count, size = len(job.micro.rows), config.size
        planes = torch.empty((count, size, size), dtype=torch.uint8, pin_memory=pinned)
        load = images.plan(job, encoded, planes.numpy())
        places = np.array_split(np.arange(count), min(config.threads, count))
        return cls(job, planes, [pool.submit(load, part.tolist()) for part in places])

    def finish(self) -> torch.Tensor:
        """Wait for the threads: uint8 [B, 1, H, W], or [B, 3, H, W] if there are colour images."""
        import torch

        colours = {place: image for part in self.parts for place, image in part.result().items()}
        if not colours:
            return self.planes[:, None]
        pixels = self.planes[..., None].repeat(1, 1, 1, 3)
        for place, image in colours.items():
            pixels[place] = torch.from_numpy(image)
        return pixels.permute(0, 3, 1, 2)


class _Images:
    """Loads images of a dataset; used by several threads at once."""

    def __init__(self, dataset: Dataset, config: DataConfig, *, augmented: bool) -> None:
        self.size, self.color = config.size, config.color == "rgb"
        self.encoded = EncodedImages(dataset, config.size, color=self.color)
        self.augmented = augmented

    def plan(self, job: Job, encoded: Encoded, planes: Pixels) -> Callable[[list[int]], dict[int, Pixels]]:
        """A function that loads the images at some places of a job: gray into ``planes``; it returns colour images."""
        sampling, decisions = encoded.sampling, job.decisions
        reductions, regions, matrices = sampling.reduction.tolist(), sampling.region.tolist(), sampling.centred_matrix()
        if self.augmented:
            tables, boxes = brightness_tables(decisions), pixel_boxes(decisions.erase, self.size).tolist()

        def decode(place: int) -> Pixels:
            """The region of a reduced image, uint8 [h, w] or [h, w, 3] (BGR)."""
            image = decode_reduced(encoded.images[place], reductions[place], color=self.color)
            width, height = -(-encoded.sides[place] // reductions[place])
            if image is None or image.shape[:2] != (height, width):
                where = self.encoded.reader.place(int(job.micro.rows[place]))
                raise Fault(f"{where}: OpenCV cannot decode the image; build the shard again")
            left, top, right, bottom = regions[place]
            return image[top:bottom, left:right]

        def load(places: list[int]) -> dict[int, Pixels]:
            colours = {}
            for place in places:
                source = decode(place)
                target = planes[place] if source.ndim == 2 else np.empty((self.size, self.size, 3), dtype=np.uint8)
                sample(source, matrices[place], target)
                if self.augmented:
                    cv2.LUT(target, tables[place], dst=target)
                    left, top, right, bottom = boxes[place]
                    target[top:bottom, left:right] = 0
                if source.ndim == 3:
                    colours[place] = np.asarray(cv2.cvtColor(target, cv2.COLOR_BGR2RGB), dtype=np.uint8)
            return colours

        return load
