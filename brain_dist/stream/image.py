"""One stored image → pixels of the network's input, by OpenCV: for the loader for CPUs, and for prediction.

The functions are the definition of :mod:`brain_dist.stream.pixels` for a single image, and need no torch.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from brain_dist.augmentation.augment import Frames, no_augmentation
from brain_dist.stream.decoding import decode_reduced
from brain_dist.stream.pixels import Sampling

Pixels = npt.NDArray[np.uint8]


def sample(source: Pixels, matrix: npt.NDArray[np.float64], target: Pixels) -> None:
    """Sample an image once, with linear interpolation and black outside.

    Args:
        source: uint8 [h, w] or [h, w, 3].
        matrix: [2, 3], see :meth:`~brain_dist.stream.pixels.Sampling.centred_matrix`.
        target: uint8 [S, S] or [S, S, 3], filled.
    """
    cv2.warpAffine(
        source,
        matrix,
        target.shape[:2],
        dst=target,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )


def evaluation_pixels(
    encoded: bytes, width: int, height: int, head: tuple[int, int, int, int] | None, size: int, *, color: bool
) -> Pixels | None:
    """What the network sees of one stored image in evaluation, before ``data.stretch``.

    Args:
        encoded: a JPEG or PNG.
        width: its width in pixels.
        height: its height.
        head: x, y, width and height of the box to show; None shows the whole image.
        size: pixels per side of the network's input, S.
        color: keep the colours of a colour image.

    Returns:
        uint8 [S, S], or [S, S, 3] (RGB) of a colour image; None if OpenCV cannot decode it.
    """
    frame = Frames(*(np.array([value], dtype=np.int64) for value in head or (0, 0, width, height)))
    sampling = Sampling.of(no_augmentation(frame, np.zeros(1, dtype=np.int64)), size)
    reduction = int(sampling.reduction[0])
    source = decode_reduced(encoded, reduction, color=color)
    if source is None or source.shape[:2] != (-(-height // reduction), -(-width // reduction)):
        return None
    left, top, right, bottom = sampling.region[0].tolist()
    source = source[top:bottom, left:right]
    target = np.empty((size, size) if source.ndim == 2 else (size, size, 3), dtype=np.uint8)
    sample(source, sampling.centred_matrix()[0], target)
    return target if target.ndim == 2 else np.asarray(cv2.cvtColor(target, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def stretched(pixels: Pixels) -> Pixels:
    """What :func:`brain_dist.augmentation.style.stretch` makes of an image uint8 [S, S] or [S, S, 3], without torch."""
    counts, levels = np.bincount(pixels.ravel(), minlength=256), np.arange(256)

    def percentile(of: npt.NDArray[np.int64], percent: int) -> int:
        return int((100 * of.cumsum() < percent * of.sum()).sum())

    tissue = counts * (10 * levels > percentile(counts, 99))
    low, high = percentile(tissue, 1), percentile(tissue, 99)
    if high <= low:
        return pixels
    span = high - low
    return ((510 * (levels - low) + span) // (2 * span)).clip(0, 255).astype(np.uint8)[pixels]
