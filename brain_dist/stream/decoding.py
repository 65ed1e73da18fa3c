"""Decode stored images at a fraction of their size with OpenCV, and what a loader decodes for a job."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from brain_dist.augmentation.composing import compose
from brain_dist.common.workers import use_one_opencv_thread
from brain_dist.errors import Fault
from brain_dist.store.dataset import Dataset
from brain_dist.store.reader import ShardReader
from brain_dist.stream.batch import Job
from brain_dist.stream.pixels import JPEG_REDUCTION, Sampling, of_reduced_images

Pixels = npt.NDArray[np.uint8]

_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


def decode_reduced(encoded: bytes, reduction: int, *, color: bool) -> Pixels | None:
    """An image at 1/reduction of its size: uint8 [h, w], or [h, w, 3] (BGR) if ``color`` is True and it has colours.

    None if OpenCV cannot decode it. The rule is step 1 of :mod:`brain_dist.stream.pixels`.
    """
    jpeg = encoded.startswith(b"\xff\xd8")  # of other formats, OpenCV reduces by another rule
    decoded = min(reduction, JPEG_REDUCTION) if jpeg else 1
    # ANYCOLOR keeps gray images gray, and returns others in the order BGR
    flags = cv2.IMREAD_IGNORE_ORIENTATION | (cv2.IMREAD_ANYCOLOR if color else 0) | _REDUCED[decoded]
    image = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), flags)
    return None if image is None else _reduce(image, reduction // decoded)  # type: ignore[arg-type]


def _reduce(image: Pixels, factor: int) -> Pixels:
    """Means of ``factor`` × ``factor`` pixels, the last row and column repeated if the size is not a multiple."""
    if factor == 1:
        return image
    below, right = -image.shape[0] % factor, -image.shape[1] % factor
    if below or right:
        image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)  # type: ignore[assignment]
    size = image.shape[1] // factor, image.shape[0] // factor
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


@dataclass(frozen=True)
class Encoded:
    """What a loader decodes for a job.

    Attributes:
        images: JPEG or PNG files, B of them.
        sampling: where the pixels of the batch are in them.
        sides: int32 [B, 2], their width and height.
    """

    images: list[bytes]
    sampling: Sampling
    sides: npt.NDArray[np.int32]


class EncodedImages:
    """The encoded images of jobs: as they are stored, or composed where a visit has a transplant.

    It may be used by several threads at once, and is picklable: each worker process has a copy.

    Args:
        dataset: the shards.
        size: height and width of the network's input.
        color: whether images keep their colours.
    """

    def __init__(self, dataset: Dataset, size: int, *, color: bool) -> None:
        use_one_opencv_thread()
        self.reader = ShardReader(dataset)
        self._sides = np.stack([dataset.columns["width"], dataset.columns["height"]], axis=1)  # int32
        self._size, self._color = size, color

    def read(self, job: Job) -> Encoded:
        """The encoded images of a job.

        Raises:
            Fault: a shard or one of its images is damaged.
        """
        rows = job.micro.rows
        sampling, sides = Sampling.of(job.decisions, self._size), self._sides[rows]
        if not job.transplants:
            return Encoded([self.reader.read(row) for row in rows.tolist()], sampling, sides)
        composed = np.zeros(len(rows), dtype=bool)
        composed[list(job.transplants)] = True
        images = [
            compose(job.transplants[place], reduction, self._decode) if composed[place] else self.reader.read(row)
            for place, (row, reduction) in enumerate(zip(rows.tolist(), sampling.reduction.tolist(), strict=True))
        ]
        return Encoded(images, *of_reduced_images(sampling, sides, composed))

    def _decode(self, row: int, reduction: int) -> Pixels:
        image = decode_reduced(self.reader.read(row), reduction, color=self._color)
        if image is None:
            raise Fault(f"{self.reader.place(row)}: OpenCV cannot decode the image; build the shard again")
        return image
