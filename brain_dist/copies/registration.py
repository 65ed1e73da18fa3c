"""Copies that do not lie on each other: cut inside the head, shifted, turned by a few degrees.

The aligned comparison of :mod:`brain_dist.copies.similarity` loses such pairs: a crop of a tenth leaves a correlation
of 0.07. They are found in two steps on the 64 x 64 thumbnails of the heads.

**Candidates.** Each head's 19 windows (cut by up to an eighth on each side) are compared with all whole heads,
straight and mirrored, by the 48 numbers of :mod:`brain_dist.copies.descriptor`: matrix products.

**Confirmation.** A candidate pair is registered: six affine parameters by the inverse compositional Gauss-Newton method
(Baker and Matthews 2004) on the local structure, first at 32 and then at 64 pixels, and the correlation after that
decides. :data:`REGISTERED` and what it rests on are explained in :mod:`brain_dist.copies.search`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import product

import numpy as np

from brain_dist.collection.pixels import THUMB
from brain_dist.common.scratch import scratch
from brain_dist.common.workers import in_threads
from brain_dist.copies.descriptor import WHOLE, Descriptor, field, slabs
from brain_dist.copies.similarity import Pairs, above

REGISTERED = 0.90  # correlation after registration from which two images count as one picture
CANDIDATE = (0.6, 0.82)  # range of the cosine of descriptors from which a pair is registered, see candidate_cosine
_BUDGET = 3.0  # pairs of strangers that may be registered per image
_SMALL = 32
# pixels a side, Gauss-Newton steps, and the correlation without which the next stage is not tried
_STAGES = ((_SMALL, 3, 0.65), (THUMB, 1, 0.8), (THUMB, 4, REGISTERED))
_CUTS = ((0.0, 0.0), (0.06, 0.06), (0.12, 0.12), (0.0, 0.1), (0.1, 0.0))  # of the two ends of an axis
_BLOCK = 512  # images whose windows are compared at once, with
_WHOLE = 2048  # whole heads: small enough for a processor's cache
_CHUNK = 256  # pairs registered at once
_INSIDE = 0.75  # least share of a frame that must lie inside the other one


def moved_pairs(heads: np.ndarray, joined: np.ndarray, progress: Callable[[int, int], None] | None = None) -> Pairs:
    """Pairs (i < j) among head thumbnails uint8 [N, 64, 64] that agree after registration.

    Pairs whose ``joined`` int64 [N] is the same are known already to show one picture and are not looked at.
    """
    found: dict[tuple[int, int], tuple[float, bool]] = {}
    count = len(heads)
    if count < 2:
        return Pairs(*(np.zeros(0, dtype=kind) for kind in (np.int64, np.int64, np.float32, np.bool_)))
    descriptor, fields = Descriptor.fit(heads), whole_fields(heads)
    starts = range(0, count, _BLOCK)
    described = np.concatenate(list(in_threads(lambda low: descriptor(heads[low : low + _BLOCK]), starts)))
    whole = described, descriptor.mirrored(described)
    least = candidate_cosine(heads, descriptor)

    def compare(low: int) -> list[tuple[int, int, float, bool]]:
        i, j, window, mirrored = _candidates(heads, descriptor, whole, low, least)
        fresh = joined[i] != joined[j]
        i, j, window, mirrored = (part[fresh] for part in (i, j, window, mirrored))
        agree: list[tuple[int, int, float, bool]] = []
        for start in range(0, len(i), _CHUNK):
            part = slice(start, start + _CHUNK)
            value = confirm(fields, i[part], j[part], window[part], mirrored[part])
            columns = (np.minimum(i[part], j[part]), np.maximum(i[part], j[part]), value, mirrored[part])
            agree += zip(*(column[value >= REGISTERED].tolist() for column in columns), strict=True)
        return agree

    for done, block in enumerate(in_threads(compare, starts), 1):
        for one, other, value, mirrored in block:
            found[one, other] = max(found.get((one, other), (0.0, False)), (value, mirrored))
        if progress is not None:
            progress(done, len(starts))
    ends = np.array(sorted(found), dtype=np.int64).reshape(-1, 2)
    values = [found[a, b] for a, b in ends.tolist()]
    return Pairs(
        ends[:, 0],
        ends[:, 1],
        np.array([value for value, _ in values], dtype=np.float32),
        np.array([flipped for _, flipped in values], dtype=bool),
    )


def windows() -> np.ndarray:
    """float32 [19, 4]: the windows (left, top, right, bottom) as shares of the head's box; the first is all of it.

    Those that cut one axis much more than the other are left out.
    """
    chosen = [(x, y) for x, y in product(_CUTS, _CUTS) if abs(sum(x) - sum(y)) < 0.125]
    return np.array([(x[0], y[0], 1 - x[1], 1 - y[1]) for x, y in chosen], dtype=np.float32)


def candidate_cosine(heads: np.ndarray, descriptor: Descriptor) -> float:
    """From which cosine on pairs are registered.

    As low as time allows: so that about three strangers an image are, going by the best cosines of 512 x 512 pairs.
    A small collection can afford to look at nearly all pairs; its descriptor, learnt from few images, needs it to.
    """
    some = heads[:: -(-len(heads) // 512)]
    whole = descriptor(some)
    sides = whole, descriptor.mirrored(whole)

    def highest(window: np.ndarray) -> np.ndarray:
        cut = descriptor(some, window)
        return np.maximum(*(cut @ side.T for side in sides))

    best = np.full((len(some), len(some)), -1, dtype=np.float32)
    for cosine in in_threads(highest, list(windows())):
        np.maximum(best, cosine, out=best)
    best[np.diag_indices(len(some))] = -1
    return float(np.clip(np.quantile(best, max(0.0, 1 - _BUDGET / len(heads))), *CANDIDATE))


def _candidates(
    heads: np.ndarray, descriptor: Descriptor, whole: tuple[np.ndarray, ...], low: int, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(i, j, window, mirrored) of pairs whose descriptors agree, with i in the block from ``low`` on.

    Window w of image i was compared with the whole of image j. Each (i, j) comes once, with its best window and side,
    though it may come again as (j, i).
    """
    block = heads[low : low + _BLOCK]
    parts = []
    for number, window in enumerate(windows()):
        cut = descriptor(block, window)
        for start, mirrored in product(range(0, len(heads), _WHOLE), (False, True)):
            others = whole[mirrored][start : start + _WHOLE]
            i, j = above(cut, others, least)
            cosine = np.einsum("ij,ij->i", cut[i], others[j])
            parts.append((i + low, j + start, cosine, np.full(len(i), 2 * number + mirrored)))
    i, j, cosine, how = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((-cosine, j, i))
    i, j, how = i[order], j[order], how[order]
    keep = i != j
    keep[1:] &= (np.diff(i) != 0) | (np.diff(j) != 0)
    keep &= (how > 1) | (i < j)  # whole against whole is the same both ways
    i, j, how = i[keep], j[keep], how[keep]
    return i, j, how // 2, how % 2 == 1


def whole_fields(heads: np.ndarray) -> dict[int, np.ndarray]:
    """The local structure of all of ``heads`` at the sides that registration works at, on the disk: 10 KB a head."""
    made = {side: scratch((len(heads), side, side), np.float16) for side in (_SMALL, THUMB)}

    def fill(part: slice) -> None:
        for side, fields in made.items():
            fields[part] = field(heads[part], WHOLE, side)

    for _ in in_threads(fill, list(slabs(len(heads)))):
        pass
    return made


def confirm(
    fields: dict[int, np.ndarray], i: np.ndarray, j: np.ndarray, window: np.ndarray, mirrored: np.ndarray
) -> np.ndarray:
    """float32 [M]: correlation of head i with head j (mirrored where asked) after registration from a window.

    ``fields`` as :func:`whole_fields` gives them. Pairs that are far from agreeing at a small size or after a step are
    given up; their value is what they had reached.
    """
    affine = _starting(windows()[window])
    result = np.zeros(len(i), dtype=np.float32)
    going = np.arange(len(i))
    for side, steps, enough in _STAGES:
        image, template = (fields[side][part[going]].astype(np.float32) for part in (i, j))
        flipped = mirrored[going]
        template[flipped] = template[flipped, :, ::-1]
        value, affine[going] = _gauss_newton(image, template, affine[going], steps)
        result[going] = value if side == THUMB else np.minimum(value, REGISTERED - 0.01)
        going = going[value >= enough]
        if not len(going):
            break
    return result


def _starting(window: np.ndarray) -> np.ndarray:
    """float32 [M, 3, 3]: maps of the frame [-1, 1]² onto windows [M, 4]."""
    affine = np.zeros((len(window), 3, 3), dtype=np.float32)
    left, top, right, bottom = window.T
    affine[:, 0, 0], affine[:, 1, 1], affine[:, 2, 2] = right - left, bottom - top, 1
    affine[:, 0, 2], affine[:, 1, 2] = left + right - 1, top + bottom - 1
    return affine


def _gauss_newton(
    image: np.ndarray, template: np.ndarray, affine: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Register ``image`` to ``template``, both float32 [M, S, S]; ``affine`` [M, 3, 3] maps template to image
    coordinates. Returns the best correlation [M] and its map [M, 3, 3]."""
    count, side, _ = image.shape
    chosen, points = _points(side)
    first, last = chosen.start, chosen.stop
    fixed = template[:, chosen, chosen].reshape(count, -1)
    after, before = slice(first + 1, last + 1, 2), slice(first - 1, last - 1, 2)
    spacing = np.float32(side / 4)
    across = ((template[:, chosen, after] - template[:, chosen, before]) * spacing).reshape(count, -1)
    down = ((template[:, after, chosen] - template[:, before, chosen]) * spacing).reshape(count, -1)
    inverse = np.linalg.inv(_hessian(across, down, points))
    best, best_affine = np.full(count, -1, dtype=np.float32), affine.copy()
    for step in range(steps + 1):
        moved, seen = _sampled(image, affine, points)
        number = seen.sum(axis=1)
        a, b = ((part - (np.vecdot(part, seen) / np.maximum(number, 1))[:, None]) * seen for part in (moved, fixed))
        power, product_ = np.vecdot(a, a), np.vecdot(a, b)
        value = product_ / np.maximum(np.sqrt(power * np.vecdot(b, b)), 1e-6)
        value[number < _INSIDE * points.shape[1]] = -1
        better = value > best
        best[better], best_affine[better] = value[better], affine[better]
        if step == steps:
            break
        gain = np.clip(product_ / np.maximum(power, 1e-6), 0.2, 5.0)
        a *= gain[:, None]
        a -= b
        slope = np.concatenate([(part * a) @ points.T for part in (across, down)], axis=1)
        move = np.clip((inverse @ slope[..., None])[..., 0], -0.1, 0.1)
        change = np.tile(np.eye(3, dtype=np.float32), (count, 1, 1))
        change[:, :2] += move.reshape(count, 2, 3)
        affine = affine @ np.linalg.inv(change)
    return best, best_affine


@lru_cache(maxsize=4)
def _points(side: int) -> tuple[slice, np.ndarray]:
    """Which pixels of a row or column are compared, and homogeneous coordinates float32 [3, P] of those of a field.

    The fields are smooth: every other pixel of every other row tells as much, in a quarter of the time. The borders'
    structure is made up by reflection, so they are left out.
    """
    line = (np.arange(0, side, 2) + 0.5) / side * 2 - 1
    used = np.flatnonzero(np.abs(line) < 0.94)
    y, x = np.meshgrid(line[used], line[used], indexing="ij")
    points = np.stack([x.ravel(), y.ravel(), np.ones(x.size)]).astype(np.float32)
    return slice(2 * int(used[0]), 2 * int(used[-1]) + 1, 2), points


def _hessian(across: np.ndarray, down: np.ndarray, points: np.ndarray) -> np.ndarray:
    """float32 [M, 6, 6] of the affine parameters, from a template's slopes [M, P] in both directions."""
    squares = (points[:, None] * points[None]).reshape(9, -1).T
    hessian = np.empty((len(across), 2, 3, 2, 3), dtype=np.float32)
    for (row, one), (column, other) in product(enumerate((across, down)), repeat=2):
        hessian[:, row, :, column] = ((one * other) @ squares).reshape(-1, 3, 3)
    flat = hessian.reshape(-1, 6, 6)
    # a little damping: flat structure along one direction must not throw the map away
    diagonal = np.arange(6)
    flat[:, diagonal, diagonal] += 0.01 * np.trace(flat, axis1=1, axis2=2)[:, None] / 6 + 1e-6
    return flat


def _sampled(image: np.ndarray, affine: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values float32 [M, P] of ``image`` [M, S, S] at mapped points, bilinear, and 1 where those lie inside it or 0."""
    side = image.shape[1]
    x, y = affine[:, 0] @ points, affine[:, 1] @ points
    seen = ((np.abs(x) <= 1) & (np.abs(y) <= 1)).astype(np.float32)
    for at in (x, y):
        at += 1
        at *= side / 2
        at -= 0.5
        np.clip(at, 0, side - 1.001, out=at)
    column, row = x.astype(np.int32), y.astype(np.int32)
    x -= column
    y -= row
    place = row * side + column + np.arange(0, image.size, side * side, dtype=np.int32)[:, None]
    flat, lines = image.reshape(-1), []
    for below in (0, side):
        left, right = flat.take(place + below), flat.take(place + (below + 1))
        right -= left
        right *= x
        left += right
        lines.append(left)
    lines[1] -= lines[0]
    lines[1] *= y
    lines[0] += lines[1]
    return lines[0], seen
