"""Candidate pairs of copies that are not aligned with each other: cropped, shifted or rotated.

19 windows of each head (cropped by up to an eighth on each side) are compared with all whole heads, straight and
mirrored, by the 48 coordinates of :mod:`brain_dist.copies.descriptor`. This takes matrix products only.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from brain_dist.common.workers import in_threads
from brain_dist.copies.descriptor import Descriptor
from brain_dist.copies.similarity import Halves, pairs_above

COSINE_RANGE = (0.6, 0.82)  # limits of the cosine from which pairs are registered, see candidate_cosine
BLOCK = 512  # images whose windows are compared at once, with
_WHOLE_BLOCK = 256  # whole heads: small enough for the processor's cache
_BUDGET = 3.0  # registered pairs of different pictures per image
_CROPS = ((0.0, 0.0), (0.06, 0.06), (0.12, 0.12), (0.0, 0.1), (0.1, 0.0))  # of the two ends of an axis


def windows() -> np.ndarray:
    """float32 [19, 4]: windows (left, top, right, bottom) as shares of the head's box. The first is the whole box.

    Windows that crop one axis much more than the other are left out.
    """
    crops = [(x, y) for x, y in product(_CROPS, _CROPS) if abs(sum(x) - sum(y)) < 0.125]
    return np.array([(x[0], y[0], 1 - x[1], 1 - y[1]) for x, y in crops], dtype=np.float32)


def candidate_cosine(heads: np.ndarray, descriptor: Descriptor) -> float:
    """The cosine of the descriptors of ``heads`` [N, side, side] from which pairs are registered.

    It is as low as time allows: about three pairs of different pictures per image, estimated from the best cosines of
    512 x 512 pairs. A small collection can afford to register nearly all pairs. It also needs to, because its
    descriptor is fitted to few images.
    """
    sample = heads[:: -(-len(heads) // 512)]
    whole = descriptor(sample)[0]

    def highest(window: np.ndarray) -> np.ndarray:
        cropped = descriptor(sample, window[None])[0]
        return cropped.even @ whole.even.T + np.abs(cropped.odd @ whole.odd.T)

    best = np.full((len(sample), len(sample)), -1, dtype=np.float32)
    for cosine in in_threads(highest, list(windows())):
        np.maximum(best, cosine, out=best)
    best[np.diag_indices(len(sample))] = -1
    return float(np.clip(np.quantile(best, max(0.0, 1 - _BUDGET / len(heads))), *COSINE_RANGE))


def candidates(
    heads: np.ndarray, descriptor: Descriptor, whole: Halves, low: int, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (i, j, window, mirrored), each [M], whose descriptors agree, with i in the block that starts at ``low``.

    Window w of image i is compared with the whole of image j. Each (i, j) is returned once, with its best window and
    side. The same pair may be returned again as (j, i).
    """
    parts = []
    for number, cropped in enumerate(descriptor(heads[low : low + BLOCK], windows())):
        for start in range(0, len(heads), _WHOLE_BLOCK):
            others = whole.rows(start, start + _WHOLE_BLOCK)
            i, j, cosine = pairs_above(cropped, others, threshold)
            mirrored = np.vecdot(cropped.odd[i], others.odd[j]) < 0
            parts.append((i + low, j + start, cosine, np.full(len(i), number), mirrored))
    i, j, cosine, window, mirrored = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((-cosine, j, i))
    i, j, window, mirrored = i[order], j[order], window[order], mirrored[order]
    keep = i != j
    keep[1:] &= (np.diff(i) != 0) | (np.diff(j) != 0)
    keep &= (window > 0) | (i < j)  # comparing whole with whole is symmetric
    return i[keep], j[keep], window[keep], mirrored[keep]
