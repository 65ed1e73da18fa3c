"""Which pixels the network sees: the definition that every loader carries out, in training and in evaluation.

An input image of ``size`` × ``size`` pixels is made from a stored image in four steps.

1. **Decode** at 1/r of its size. The reduction r is the largest power of two such that the crop is at least r times as
   wide and as high as the output. A reduced pixel is the mean of r × r stored pixels; at the right and bottom edges the
   last stored pixels are repeated. libjpeg's scaled decoding makes it from the low frequencies of each block, up to
   1/8, for less time than a whole decoding takes.
2. **Sample** it once, with linear interpolation, at the points to which one affine map takes the centres of the output
   pixels. The map is composed of rotation, flip, resizing and crop. Whatever lies outside the reduced pixels that the
   crop touches is black.
3. **Brightness and contrast**: look up each value, rounded to 8 bits, in a table of 256.
4. **Erase**: black out a box.

So an image is resampled once. Along the crop's shorter side that is by a factor below 2, which linear interpolation
does not alias; along its longer side the factor is up to twice the crop's aspect ratio. The plain evaluation is the
same with the identity for rotation, flip, and brightness.

Coordinates are (x, y) with the origin at the outer corner of the first pixel, whose centre is at (0.5, 0.5). Pixel i of
the reduced image covers r·i to r·(i+1) of the stored one, whatever the rounded size of the reduced image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from brain_dist.augmentation.augment import Decisions, Frames

Ints = npt.NDArray[np.int32]

JPEG_REDUCTION = 8  # the largest reduction of libjpeg's scaled decoding


@dataclass(frozen=True)
class Sampling:
    """Where the pixels of a micro-batch come from.

    Attributes:
        reduction: int32 [B], 1, 2, 4, 8, …
        region: int32 [B, 4]: left, top, right, bottom of the part to sample, in pixels of the reduced image.
        matrix: float64 [B, 2, 3], from points of the output to points of the region, both in pixels from their corner.
    """

    reduction: Ints
    region: Ints
    matrix: npt.NDArray[np.float64]

    @classmethod
    def of(cls, decisions: Decisions, size: int) -> Sampling:
        """The sampling that ``decisions`` mean for an output of ``size`` × ``size`` pixels."""
        crop = decisions.crop.astype(np.int64)
        corner, extent = crop[:, :2], crop[:, 2:]
        reduction = _reduction(extent.min(axis=1), size)
        step = reduction[:, None]
        start, stop = corner // step, -(-(corner + extent) // step)
        half = extent / (2 * step)  # half of the crop, in reduced pixels
        rotation, translation = decisions.affine[:, :, :2].astype(np.float64), decisions.affine[:, :, 2]
        linear = rotation * half[:, :, None] * (2 / size)
        offset = corner / step - start + half * (1 + translation - rotation.sum(axis=2))
        matrix = np.concatenate([linear, offset[:, :, None]], axis=2)
        return cls(reduction.astype(np.int32), np.concatenate([start, stop], axis=1).astype(np.int32), matrix)

    def centred_matrix(self) -> npt.NDArray[np.float64]:
        """``matrix`` for indices of pixels instead of points, float64 [B, 2, 3]: pixel 0 has its centre at 0."""
        matrix = self.matrix.copy()
        matrix[:, :, 2] += 0.5 * matrix[:, :, :2].sum(axis=2) - 0.5
        return matrix


def of_reduced_images(sampling: Sampling, sides: Ints, reduced: npt.NDArray[np.bool_]) -> tuple[Sampling, Ints]:
    """Sampling and sides [B, 2] where the images marked in ``reduced``, bool [B], come at 1/reduction of their size."""
    step = np.where(reduced, sampling.reduction, np.int32(1))
    return replace(sampling, reduction=sampling.reduction // step), -(-sides // step[:, None])


def max_reduction(frames: Frames, size: int) -> int:
    """The largest reduction of any crop of these frames."""
    return int(_reduction(np.minimum(frames.width, frames.height), size).max(initial=1))


def _reduction(side: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """The largest power of two r with r · size ≤ side, at least 1."""
    ratio = np.maximum(side // size, 1)
    return 1 << (np.frexp(ratio)[1].astype(np.int64) - 1)


def brightness_tables(decisions: Decisions) -> npt.NDArray[np.uint8]:
    """The changed brightness of each gray level, uint8 [B, 256]."""
    levels = np.arange(256, dtype=np.float32)
    changed = decisions.gain[:, None] * levels + decisions.shift[:, None] * np.float32(255)
    return np.rint(changed).clip(0, 255).astype(np.uint8)
