"""What is measured on a slice's gray pixels in order to find copies of it: hashes, thumbnails, and the head's box.

The head's box and the thumbnails are measured on a reduced picture: the means of f x f pixels, where f is the largest
integer that leaves 256 pixels or more on the shorter side. An edge of the box is therefore an edge of a block, and has
the same place in both pictures. On the full picture an edge would be found within one block of it, or further outside
where the background is noisy, as the means suppress noise.
"""

from __future__ import annotations

import struct

import cv2
import numpy as np
import xxhash
from PIL import Image

THUMB = 64  # pixels, side of the thumbnails in which near copies are compared
_REDUCED = 256  # pixels, least shorter side of the reduced picture
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
    return np.packbits(low > _median(low)).tobytes().hex()


def head_and_thumbnails(pixels: np.ndarray) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """Measure gray pixels uint8 [H, W].

    Returns:
        The head's box (x, y, width, height) in pixels of the full picture, and thumbnails uint8 [2, 64, 64] of the
        whole picture and of the box, area-averaged.
    """
    height, width = pixels.shape
    factor = max(1, min(height, width) // _REDUCED)
    reduced = _block_means(pixels, factor)
    box = head_box(reduced)
    gray = Image.fromarray(reduced)
    if gray.width % THUMB or gray.height % THUMB:
        whole = gray.resize((THUMB, THUMB), Image.Resampling.BOX)
    else:
        whole = gray.reduce((gray.width // THUMB, gray.height // THUMB))  # the same in less than half the time
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    cropped = gray.resize((THUMB, THUMB), Image.Resampling.BOX, box=(left, top, right, bottom))
    # pixels beyond the last whole block belong to it
    right = width if right == gray.width else factor * right
    bottom = height if bottom == gray.height else factor * bottom
    head = (factor * left, factor * top, right - factor * left, bottom - factor * top)
    return head, np.stack([np.asarray(whole), np.asarray(cropped)])


def _block_means(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Means of blocks of factor x factor pixels, uint8 [H // factor, W // factor]."""
    if factor == 1:
        return pixels
    height, width = (side // factor for side in pixels.shape)
    whole_blocks = pixels[: height * factor, : width * factor]
    return cv2.resize(whole_blocks, (width, height), interpolation=cv2.INTER_AREA)


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
    background = sum(sorted(map(_median, corners))[1:3]) / 2
    threshold = background + max(8.0, 0.14 * (_percentile(inner[::2], 99.5) - background))
    _, foreground = cv2.threshold(inner, int(threshold), 1, cv2.THRESH_BINARY)  # of integers the same as > threshold
    rows, columns = (cv2.reduce(foreground, axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() for axis in (1, 0))
    rows, columns = np.flatnonzero(rows / len(columns) > 0.02), np.flatnonzero(columns / len(rows) > 0.02)
    if rows.size < 2 or columns.size < 2:
        return 0, 0, width, height
    top, bottom = _span(rows, margin_y, height)
    left, right = _span(columns, margin_x, width)
    return left, top, right - left, bottom - top


def _median(values: np.ndarray) -> float:
    """:func:`numpy.median` of a few integers in an array of any type, several times faster."""
    ordered = values.flatten()
    ordered.sort()
    return (int(ordered[(len(ordered) - 1) // 2]) + int(ordered[len(ordered) // 2])) / 2


def _percentile(pixels: np.ndarray, percent: float) -> float:
    """:func:`numpy.percentile` of uint8 [H, W] from a histogram, several times faster than by sorting."""
    cumulative = np.cumsum(cv2.calcHist([pixels], [0], None, [256], [0, 256]), dtype=np.int64)
    position, fraction = divmod((pixels.size - 1) * percent / 100, 1)
    low, high = np.searchsorted(cumulative, (position, position + 1), side="right").tolist()
    return low + (high - low) * fraction


def _span(used: np.ndarray, margin: int, length: int) -> tuple[int, int]:
    """Start and end of the ``used`` indices, which begin at ``margin``, of an axis of ``length`` pixels."""
    first, last = int(used[0]), int(used[-1]) + 1
    return (first + margin if first > 0 else 0), (last + margin if last < length - 2 * margin else length)
