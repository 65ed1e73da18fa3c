"""Copies that are not aligned with each other: cropped inside the head, shifted, or rotated by a few degrees.

The aligned comparison of :mod:`brain_dist.copies.similarity` misses such pairs: a crop of a tenth leaves a correlation
of 0.07. They are found in two steps on the 64 x 64 thumbnails of the heads.

**Candidates.** :mod:`brain_dist.copies.candidates` compares windows of each head with all whole heads by a compact
descriptor.

**Confirmation.** A candidate pair is registered on its local structure: six affine parameters by the inverse
compositional Gauss-Newton method (Baker and Matthews 2004), first at 32 and then at 64 pixels. The correlation after
registration decides. :mod:`brain_dist.copies.search` gives the evidence for :data:`REGISTERED_THRESHOLD`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from brain_dist.collection.measures import THUMB
from brain_dist.common.scratch import scratch
from brain_dist.common.workers import in_threads
from brain_dist.copies.candidates import BLOCK, candidate_cosine, candidates, windows
from brain_dist.copies.descriptor import WHOLE, Descriptor, window_structures
from brain_dist.copies.similarity import Block, Halves, NearPairs, best_of_each, chunks

REGISTERED_THRESHOLD = 0.90  # correlation after registration from which two images are copies
_SMALL = 32
_UNIT = np.float32(2048)  # of stored structures, whose values are between -16 and 16
# pixels per side, Gauss-Newton steps, and the correlation that is needed to go on to the next stage
_STAGES = ((_SMALL, 3, 0.65), (THUMB, 1, 0.8), (THUMB, 4, REGISTERED_THRESHOLD))
_REGISTERED_AT_ONCE = 256  # pairs
_MIN_OVERLAP = 0.75  # share of the frame that must lie inside the other image


def moved_pairs(
    heads: np.ndarray, *skipped: np.ndarray, progress: Callable[[int, int], None] | None = None
) -> NearPairs:
    """Pairs (i < j) among head thumbnails uint8 [N, 64, 64] that agree after registration.

    Args:
        heads: the thumbnails.
        skipped: arrays int64 [N]; pairs with the same value in one of them are skipped.
        progress: called with (done, total).
    """
    if len(heads) < 2:
        return best_of_each([], moved=True)
    descriptor, fields = Descriptor.fit(heads), whole_fields(heads)
    starts = range(0, len(heads), BLOCK)
    parts = in_threads(lambda low: descriptor(heads[low : low + BLOCK])[0], starts)
    whole = Halves(*(np.concatenate(halves) for halves in zip(*parts, strict=True)))
    cosine = candidate_cosine(heads, descriptor)

    def compare(low: int) -> list[Block]:
        i, j, window, mirrored = candidates(heads, descriptor, whole, low, cosine)
        fresh = np.logical_and.reduce([values[i] != values[j] for values in skipped])
        i, j, window, mirrored = i[fresh], j[fresh], window[fresh], mirrored[fresh]
        blocks = []
        for start in range(0, len(i), _REGISTERED_AT_ONCE):
            part = slice(start, start + _REGISTERED_AT_ONCE)
            similarity = confirm(fields, i[part], j[part], window[part], mirrored[part])
            keep = similarity >= REGISTERED_THRESHOLD
            ends = np.sort([i[part][keep], j[part][keep]], axis=0)
            blocks.append((ends[0], ends[1], similarity[keep], mirrored[part][keep]))
        return blocks

    blocks: list[Block] = []
    for done, block in enumerate(in_threads(compare, starts), 1):
        blocks += block
        if progress is not None:
            progress(done, len(starts))
    return best_of_each(blocks, moved=True)


def whole_fields(heads: np.ndarray) -> dict[int, np.ndarray]:
    """The local structure of all ``heads`` [N, ...], by side length: int16 [N, side, side] in steps of 1/2048.

    It is in files of 10 KB per head. Conversion from float16 would take longer than what is done with it.
    """
    fields = {side: scratch((len(heads), side, side), np.int16) for side in (_SMALL, THUMB)}

    def fill(chunk: slice) -> None:
        for side, field in fields.items():
            field[chunk] = np.rint(window_structures(heads[chunk], WHOLE[None], side)[0] * _UNIT)

    for _ in in_threads(fill, chunks(len(heads))):
        pass
    return fields


def confirm(
    fields: dict[int, np.ndarray], i: np.ndarray, j: np.ndarray, window: np.ndarray, mirrored: np.ndarray
) -> np.ndarray:
    """Correlation float32 [M] of head i with head j after registration that starts from a window.

    Head j is mirrored where ``mirrored`` is true. ``fields`` is the result of :func:`whole_fields`. Pairs that are far
    from agreeing at the small size or after one step are dropped; their value is the correlation reached so far.
    """
    affine = _window_affine(windows()[window])
    result = np.zeros(len(i), dtype=np.float32)
    active = np.arange(len(i))
    for side, steps, threshold in _STAGES:
        image, template = (fields[side][part[active]] / _UNIT for part in (i, j))
        flipped = mirrored[active]
        template[flipped] = template[flipped, :, ::-1]
        value, affine[active] = _gauss_newton(image, template, affine[active], steps)
        result[active] = value if side == THUMB else np.minimum(value, REGISTERED_THRESHOLD - 0.01)
        active = active[value >= threshold]
        if not len(active):
            break
    return result


def _window_affine(window: np.ndarray) -> np.ndarray:
    """Maps float32 [M, 3, 3] of the frame [-1, 1]² onto windows [M, 4]."""
    affine = np.zeros((len(window), 3, 3), dtype=np.float32)
    left, top, right, bottom = window.T
    affine[:, 0, 0], affine[:, 1, 1], affine[:, 2, 2] = right - left, bottom - top, 1
    affine[:, 0, 2], affine[:, 1, 2] = left + right - 1, top + bottom - 1
    return affine


def _gauss_newton(
    image: np.ndarray, template: np.ndarray, affine: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Register ``image`` to ``template``, both float32 [M, S, S].

    ``affine`` [M, 3, 3] maps template to image coordinates.

    Returns:
        The best correlation [M] and its map [M, 3, 3].
    """
    pixels, points = _grid(image.shape[1])
    fixed, across, down = _template_gradients(template, pixels)
    inverse = np.linalg.inv(_hessian(across, down, points))
    best, best_affine = np.full(len(image), -1, dtype=np.float32), affine.copy()
    for step in range(steps + 1):
        moved, inside = _sampled(image, affine, points)
        count = inside.sum(axis=1)
        a, b = ((part - (np.vecdot(part, inside) / np.maximum(count, 1))[:, None]) * inside for part in (moved, fixed))
        power, covariance = np.vecdot(a, a), np.vecdot(a, b)
        value = covariance / np.maximum(np.sqrt(power * np.vecdot(b, b)), 1e-6)
        value[count < _MIN_OVERLAP * points.shape[1]] = -1
        better = value > best
        best[better], best_affine[better] = value[better], affine[better]
        if step == steps:
            break
        gain = np.clip(covariance / np.maximum(power, 1e-6), 0.2, 5.0)
        a *= gain[:, None]
        a -= b
        slope = np.concatenate([(part * a) @ points.T for part in (across, down)], axis=1)
        update = np.tile(np.eye(3, dtype=np.float32), (len(image), 1, 1))
        update[:, :2] += np.clip((inverse @ slope[..., None])[..., 0], -0.1, 0.1).reshape(-1, 2, 3)
        affine = affine @ np.linalg.inv(update)
    return best, best_affine


def _template_gradients(template: np.ndarray, pixels: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The compared pixels of ``template`` and their gradients across and down, each float32 [M, P]."""
    count, side, _ = template.shape
    after, before = (slice(pixels.start + offset, pixels.stop + offset, 2) for offset in (1, -1))
    spacing = np.float32(side / 4)
    across = (template[:, pixels, after] - template[:, pixels, before]) * spacing
    down = (template[:, after, pixels] - template[:, before, pixels]) * spacing
    fixed, across, down = (part.reshape(count, -1) for part in (template[:, pixels, pixels], across, down))
    return fixed, across, down


@lru_cache(maxsize=4)
def _grid(side: int) -> tuple[slice, np.ndarray]:
    """The compared pixels of a row or column, and the homogeneous coordinates float32 [3, P] of the compared pixels.

    The fields are smooth: every other pixel of every other row is enough and takes a quarter of the time. The borders
    are left out because their structure comes from reflection.
    """
    line = (np.arange(0, side, 2) + 0.5) / side * 2 - 1
    used = np.flatnonzero(np.abs(line) < 0.94)
    y, x = np.meshgrid(line[used], line[used], indexing="ij")
    points = np.stack([x.ravel(), y.ravel(), np.ones(x.size)]).astype(np.float32)
    return slice(2 * int(used[0]), 2 * int(used[-1]) + 1, 2), points


def _hessian(across: np.ndarray, down: np.ndarray, points: np.ndarray) -> np.ndarray:
    """float32 [M, 6, 6] of the affine parameters, from a template's gradients [M, P] in both directions."""
    squares = (points[:, None] * points[None]).reshape(9, -1).T
    hessian = np.empty((len(across), 2, 3, 2, 3), dtype=np.float32)
    for row, column, gradients in ((0, 0, across * across), (0, 1, across * down), (1, 1, down * down)):
        hessian[:, row, :, column] = hessian[:, column, :, row] = (gradients @ squares).reshape(-1, 3, 3)
    flat = hessian.reshape(-1, 6, 6)
    # damping: without structure along one direction the step would be arbitrarily large
    diagonal = np.arange(6)
    flat[:, diagonal, diagonal] += 0.01 * np.trace(flat, axis1=1, axis2=2)[:, None] / 6 + 1e-6
    return flat


def _sampled(image: np.ndarray, affine: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sample ``image`` [M, S, S] at mapped points, bilinearly.

    Returns:
        Values float32 [M, P], and a mask float32 [M, P] that is 1 where the point lies inside the image.
    """
    side = image.shape[1]
    x, y = affine[:, 0] @ points, affine[:, 1] @ points
    inside = ((np.abs(x) <= 1) & (np.abs(y) <= 1)).astype(np.float32)
    for coordinate in (x, y):
        coordinate += 1
        coordinate *= side / 2
        coordinate -= 0.5
        np.clip(coordinate, 0, side - 1.001, out=coordinate)
    column, row = np.floor(x), np.floor(y)
    x -= column
    y -= row
    row *= side
    row += column  # at most 4,095: exact in float32
    index = row.astype(np.intp) + np.arange(0, image.size, side * side)[:, None]
    flat, lines = image.reshape(-1), []
    for below in (0, side):
        left, right = flat[below:].take(index), flat[below + 1 :].take(index)
        right -= left
        right *= x
        left += right
        lines.append(left)
    lines[1] -= lines[0]
    lines[1] *= y
    lines[0] += lines[1]
    return lines[0], inside
