"""Erase a region of an image by filling it from the tissue around it, and find a control region of the same size."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_DARK = 0.1  # of the image's 99th percentile: what is darker is air, not tissue
_TISSUE = 0.8  # share of the lesion's tissue that the control region must have


def grow(mask: Mask, margin: int) -> Mask:
    """The mask bool [H, W] with a margin of some pixels on all sides."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1))
    return cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)


def erase(pixels: Pixels, mask: Mask) -> Pixels:
    """An image with a region filled from its surroundings, so that neither content nor edge of the region is left.

    The filling is harmonic: each pixel is the mean of its four neighbours. It is as smooth as possible, and continues
    no streaks of bright bone into the region, as the inpainting methods for photographs do.

    Args:
        pixels: uint8 [H, W], or [C, H, W] of which each channel is filled alone.
        mask: bool [H, W], the region.
    """
    if pixels.ndim == 3:
        if (pixels == pixels[:1]).all():  # a gray image in three channels
            return np.repeat(erase(pixels[0], mask)[None], len(pixels), axis=0)
        return np.stack([erase(channel, mask) for channel in pixels])
    from scipy import sparse
    from scipy.sparse.linalg import spsolve

    count = int(mask.sum())
    if count in (0, mask.size):
        return pixels.copy()  # nothing to fill, or nothing to fill it from
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(count)
    rows, columns = np.nonzero(mask)
    known, neighbours = np.zeros(count), np.zeros(count)  # sum of the known neighbours, number of all
    pairs = []
    for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        y, x = rows + down, columns + right
        own = np.flatnonzero((y >= 0) & (y < mask.shape[0]) & (x >= 0) & (x < mask.shape[1]))
        neighbours[own] += 1
        other = number[y[own], x[own]]
        known[own] += np.where(other < 0, pixels[y[own], x[own]], 0)
        pairs.append(np.stack([own, other])[:, other >= 0])
    own, other = np.concatenate(pairs, axis=1)
    means = sparse.diags(neighbours, format="csc") - sparse.csc_matrix(
        (np.ones(len(own)), (own, other)), (count, count)
    )
    filled = pixels.copy()
    filled[mask] = np.rint(spsolve(means, known)).clip(0, 255)
    return filled


def mirror(mask: Mask, midline: float) -> Mask:
    """The mask bool [H, W] on the other side of a vertical line, in pixels from the left edge of the image."""
    width = mask.shape[1]
    source = np.floor(2 * midline - (np.arange(width) + 0.5)).astype(int)
    inside = (source >= 0) & (source < width)
    result = np.zeros_like(mask)
    result[:, inside] = mask[:, source[inside]]
    return result


def control_region(pixels: Pixels, lesion: Mask, midline: float) -> Mask | str:
    """The lesion's mirror image across the midline, where the same head has tissue without the lesion.

    Args:
        pixels: uint8 [H, W].
        lesion: bool [H, W], the region that is erased.
        midline: where the head's midline is, in pixels from the left edge.

    Returns:
        bool [H, W], or the reason why it is missing: ``overlap`` with the lesion, or ``outside`` the head.
    """
    region = mirror(lesion, midline)
    if (region & lesion).any():
        return "overlap"
    tissue = pixels > _DARK * np.percentile(pixels, 99)
    if (tissue & region).sum() < _TISSUE * (tissue & lesion).sum():
        return "outside"
    return region
