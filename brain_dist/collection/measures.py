"""What is measured on a slice's gray pixels in order to find copies of it: hashes, thumbnails, and the head's box."""

from __future__ import annotations

import struct

import numpy as np
import xxhash
from PIL import Image

THUMB = 64  # pixels, side of the thumbnails in which near copies are compared
BLANK_RANGE = 8  # gray values; more in an image's thumbnail is more than the noise of a JPEG
# The first 8 rows of a DCT, rounded so that all products and sums in perceptual_hash are integers below 2**53: exact in
# any order, so that every processor computes the same hash
_COSINES = np.rint(2**16 * np.cos(np.pi / (2 * THUMB) * np.outer(np.arange(8), 2 * np.arange(THUMB) + 1)))


def pixel_hash(pixels: np.ndarray) -> str:
    """128-bit hex hash (XXH3) of gray pixels uint8 [H, W] and their size.

    It is not cryptographic, because no one has a reason to forge a copy; it is 25 times faster than one that is.
    """
    digest = xxhash.xxh3_128(struct.pack("<II", *pixels.shape))
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def perceptual_hash(thumbnail: np.ndarray) -> str:
    """Perceptual hash (16 hex digits) of a whole image's thumbnail uint8 [64, 64].

    Its bits are the signs of the 8 x 8 lowest DCT coefficients relative to their median (pHash, Zauner 2010).
    """
    low = _COSINES @ thumbnail.astype(np.float64) @ _COSINES.T
    return np.packbits(low > np.median(low)).tobytes().hex()


def thumbnails(gray: Image.Image, head: tuple[int, int, int, int]) -> np.ndarray:
    """uint8 [2, 64, 64]: the whole image and its ``head`` box (x, y, width, height), area-averaged."""
    x, y, width, height = head
    if gray.width % THUMB or gray.height % THUMB:
        whole = gray.resize((THUMB, THUMB), Image.Resampling.BOX)
    else:
        whole = gray.reduce((gray.width // THUMB, gray.height // THUMB))  # the same in less than half the time
    cropped = gray.resize((THUMB, THUMB), Image.Resampling.BOX, box=(x, y, x + width, y + height))
    return np.stack([np.asarray(whole), np.asarray(cropped)])


def are_blank(thumbs: np.ndarray) -> np.ndarray:
    """bool [N]: whether images show nothing, by their thumbnails uint8 [N, 2, 64, 64], as at the ends of a volume.

    The gray values of a blank image's thumbnail differ by less than 8.
    """
    whole = thumbs[:, 0]
    return whole.max(axis=(1, 2)) - whole.min(axis=(1, 2)) < BLANK_RANGE


def head_box(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """The head's bounding box (x, y, width, height) in gray pixels uint8 [H, W]; the whole image if none stands out.

    The background is the median of the four corners, because some publishers' background is gray. Foreground exceeds it
    by 14 % of the distance to the 99.5th percentile of every other row. A row or column counts if 2 % of it is
    foreground, so that noise and lettering do not widen the box. The outermost 3 % are ignored, because some images
    have a white frame there; a box that reaches them extends to the edge.
    """
    height, width = pixels.shape
    margin_y, margin_x = height * 3 // 100, width * 3 // 100
    inner = pixels[margin_y : height - margin_y, margin_x : width - margin_x]
    side_y, side_x = max(1, height // 14), max(1, width // 14)
    corners = [inner[:side_y, :side_x], inner[:side_y, -side_x:], inner[-side_y:, :side_x], inner[-side_y:, -side_x:]]
    background = sum(sorted(np.median(np.stack(corners).reshape(4, -1), axis=1).tolist())[1:3]) / 2
    threshold = background + max(8.0, 0.14 * (_percentile(inner[::2], 99.5) - background))
    # of integers the same as > threshold, in a third of the time
    foreground = (inner > int(threshold)).view(np.uint8)
    rows = np.flatnonzero(np.add.reduce(foreground, axis=1, dtype=np.uint32) / foreground.shape[1] > 0.02)
    columns = np.flatnonzero(np.add.reduce(foreground, axis=0, dtype=np.uint32) / foreground.shape[0] > 0.02)
    if rows.size < 2 or columns.size < 2:
        return 0, 0, width, height
    top, bottom = _span(rows, margin_y, height)
    left, right = _span(columns, margin_x, width)
    return left, top, right - left, bottom - top


def _percentile(pixels: np.ndarray, percent: float) -> float:
    """:func:`numpy.percentile` of uint8 [H, W] from a histogram, several times faster than by sorting."""
    cumulative = np.cumsum(Image.fromarray(pixels).histogram())
    position, fraction = divmod((pixels.size - 1) * percent / 100, 1)
    low, high = np.searchsorted(cumulative, (position, position + 1), side="right").tolist()
    return low + (high - low) * fraction


def _span(used: np.ndarray, margin: int, length: int) -> tuple[int, int]:
    """Start and end of the ``used`` indices, which begin at ``margin``, of an axis of ``length`` pixels."""
    first, last = int(used[0]), int(used[-1]) + 1
    return (first + margin if first > 0 else 0), (last + margin if last < length - 2 * margin else length)
