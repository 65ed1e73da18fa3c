"""Copies that do not lie on each other: cut inside the head, shifted, turned by a few degrees.

The aligned comparison of :mod:`brain_dist.data.similarity` loses such pairs: a crop of a tenth leaves a correlation of
0.07. They are found in two steps on the 64 x 64 thumbnails of the heads.

**Candidates.** Each head is described by 48 numbers in which small shifts, scales and turns matter little and the
person matters much: linear discriminant analysis (Fisher 1936) in which an image's own slightly moved versions are a
class. It is fitted to the audited images themselves. Each head's 19 windows (cut by up to an eighth on each side) are
compared with all whole heads, straight and mirrored, as matrix products.

**Confirmation.** A candidate pair is registered: six affine parameters by the inverse compositional Gauss-Newton method
(Baker and Matthews 2004) on the local structure, first at 32 and then at 64 pixels, and the correlation after that
decides. :data:`REGISTERED` and what it rests on are explained in :mod:`brain_dist.data.audit`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.data.pixels import THUMB
from brain_dist.data.pool import in_threads
from brain_dist.data.scratch import scratch
from brain_dist.data.similarity import Pairs, above, detail, kernel_matrix, unit

if TYPE_CHECKING:
    import torch

REGISTERED = 0.90  # correlation after registration from which two images count as one picture
CANDIDATE = (0.6, 0.82)  # range of the cosine of descriptors from which a pair is registered, see candidate_cosine
_BUDGET = 3.0  # pairs of strangers that may be registered per image
_SIDE = 32  # pixels a side of the descriptor's field
# pixels a side, Gauss-Newton steps, and the correlation without which the next stage is not tried
_STAGES = ((_SIDE, 3, 0.65), (THUMB, 1, 0.8), (THUMB, 4, REGISTERED))
_DIMENSIONS = 48
_CUTS = ((0.0, 0.0), (0.06, 0.06), (0.12, 0.12), (0.0, 0.1), (0.1, 0.0))  # of the two ends of an axis
_BLOCK = 512  # images whose windows are compared at once, with
_WHOLE = 2048  # whole heads: small enough for a processor's cache
_SLAB = 128
_WHOLE_HEAD = np.array([0.0, 0.0, 1.0, 1.0])
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
    whole = tuple(np.empty((count, descriptor.basis.shape[1]), dtype=np.float32) for _ in range(2))

    def describe(low: int) -> None:
        part = heads[low : low + _BLOCK]
        whole[0][low : low + _BLOCK], whole[1][low : low + _BLOCK] = descriptor(part), descriptor(part[:, :, ::-1])

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

    starts = range(0, count, _BLOCK)
    for _ in in_threads(describe, starts):
        pass
    least = candidate_cosine(heads, descriptor)
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
    whole = [descriptor(side) for side in (some, some[:, :, ::-1])]
    best = np.max([descriptor(some, window) @ other.T for window in windows() for other in whole], axis=0)
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


@dataclass(frozen=True)
class Descriptor:
    """Head thumbnails → unit vectors float32 [N, <= 48]; see the module's text."""

    mean: np.ndarray
    basis: np.ndarray

    @classmethod
    def fit(cls, heads: np.ndarray) -> Descriptor:
        """Learn it from up to 3,000 of ``heads`` uint8 [N, 64, 64] and their moved versions; always the same result."""
        from scipy.linalg import solve_triangular
        from scipy.sparse.linalg import svds

        rng = np.random.default_rng(0)
        sample = np.array(heads[:: -(-len(heads) // 3000)])
        sample[1::2] = sample[1::2, :, ::-1]
        moves = _WHOLE_HEAD + rng.uniform(-0.04, 0.04, (24, 4))
        versions = []
        for _ in range(6):
            which = rng.integers(len(moves), size=len(sample))
            version = np.empty((len(sample), _SIDE * _SIDE), dtype=np.float32)
            for number, move in enumerate(moves):
                version[which == number] = unit(field(sample[which == number], move, _SIDE))
            versions.append(version)
        centres = np.mean(versions, axis=0)
        mean = centres.mean(axis=0)
        between = centres - mean
        within = sum(np.asarray((v - centres).T @ (v - centres)) for v in versions) / (len(versions) * len(sample))
        size = len(mean)
        # a ridge: with few images the scatter inside a class is not of full rank
        within += 0.1 * np.trace(within) / size * np.eye(size) + 1e-9 * np.eye(size)
        count = max(1, min(_DIMENSIONS, len(sample) - 1))
        # Lanczos's method for the few largest: a tenth of the time of the dense solver
        lower = np.linalg.cholesky(within)
        half = solve_triangular(lower, between.T, lower=True) / np.sqrt(len(sample))
        if np.linalg.norm(half) > 1e-6:
            leading = svds(half, k=count, v0=rng.standard_normal(min(half.shape)), return_singular_vectors="u")[0]
        else:  # flat pictures alone: any directions do, and the solver wants something to start from
            leading = np.eye(size, count)
        basis = solve_triangular(lower, leading, lower=True, trans="T")
        return cls(mean, basis.astype(np.float32))

    def __call__(self, heads: np.ndarray, window: np.ndarray | None = None) -> np.ndarray:
        """Descriptors of a window of the heads (all of them without one)."""
        made = unit(field(heads, _WHOLE_HEAD if window is None else window, _SIDE))
        short = (made - self.mean) @ self.basis
        length = np.linalg.norm(short, axis=1, keepdims=True)
        return np.divide(short, length, out=np.zeros_like(short), where=length > 1e-6)


def field(heads: np.ndarray, window: np.ndarray, side: int) -> np.ndarray:
    """Local structure of a window of thumbnails uint8 [N, 64, 64]: float32 [N, side, side], smoothed a little."""
    left, top, right, bottom = (float(edge) for edge in window)
    size, smooth = heads.shape[-1], _gauss(side, 1.0)
    down, across = _resample(top, bottom, size, side), _resample(left, right, size, side).T
    made = np.empty((len(heads), side, side), dtype=np.float32)
    for low in range(0, len(heads), _SLAB):
        part = slice(low, low + _SLAB)
        made[part] = smooth @ detail(down @ heads[part].astype(np.float32) @ across) @ smooth.T
    return made


@lru_cache(maxsize=256)
def _resample(low: float, high: float, size: int, side: int) -> np.ndarray:
    """float32 [side, size]: linear resampling of [low, high] of ``size`` pixels to ``side``, two samples a pixel."""
    at = np.clip((low + (np.arange(2 * side) + 0.5) / (2 * side) * (high - low)) * size - 0.5, 0, size - 1)
    first = np.minimum(at.astype(int), size - 2)
    matrix = np.zeros((2 * side, size), dtype=np.float32)
    rows = np.arange(2 * side)
    matrix[rows, first] += 1 - (at - first)
    matrix[rows, first + 1] += at - first
    return matrix.reshape(side, 2, size).mean(axis=1)


@lru_cache(maxsize=8)
def _gauss(size: int, sigma: float) -> np.ndarray:
    reach = np.arange(-4, 5)
    weights = np.exp(-0.5 * (reach / sigma) ** 2)
    return kernel_matrix(size, weights / weights.sum())


def whole_fields(heads: np.ndarray) -> dict[int, np.ndarray]:
    """The local structure of all of ``heads`` at the sides that registration works at, on the disk: 10 KB a head."""
    made = {side: scratch((len(heads), side, side), np.float16) for side in (_SIDE, THUMB)}

    def fill(low: int) -> None:
        for side, fields in made.items():
            fields[low : low + _SLAB] = field(heads[low : low + _SLAB], _WHOLE_HEAD, side)

    for _ in in_threads(fill, range(0, len(heads), _SLAB)):
        pass
    return made


def confirm(
    fields: dict[int, np.ndarray], i: np.ndarray, j: np.ndarray, window: np.ndarray, mirrored: np.ndarray
) -> np.ndarray:
    """float32 [M]: correlation of head i with head j (mirrored where asked) after registration from a window.

    ``fields`` as :func:`whole_fields` gives them. Pairs that are far from agreeing at a small size or after a step are
    given up; their value is what they had reached.
    """
    import torch

    affine = _starting(windows()[window])
    result = np.zeros(len(i), dtype=np.float32)
    going = np.arange(len(i))
    for side, steps, enough in _STAGES:
        image, template = (torch.from_numpy(fields[side][part[going]].astype(np.float32)) for part in (i, j))
        template = torch.where(torch.from_numpy(mirrored[going])[:, None, None], template.flip(2), template)
        best, better = _gauss_newton(image, template, torch.from_numpy(affine[going]), steps)
        value, affine[going] = best.numpy(), better.numpy()
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
    image: torch.Tensor, template: torch.Tensor, affine: torch.Tensor, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Register ``image`` to ``template``, both [M, S, S]; ``affine`` [M, 3, 3] maps template to image coordinates."""
    import torch
    from torch.nn.functional import grid_sample

    count, side, _ = image.shape
    # The fields are smooth: every other pixel of every other row tells as much, in a quarter of the time
    line = (torch.arange(0, side, 2) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1).reshape(-1, 3)
    inner = ((x.abs() < 0.94) & (y.abs() < 0.94)).reshape(1, -1)  # the borders' structure is made up by reflection
    fixed = template[:, ::2, ::2].reshape(count, -1)
    down, across = torch.gradient(template, spacing=2 / side, dim=(1, 2))
    slope = torch.stack([across, down], dim=-1)[:, ::2, ::2].reshape(count, -1, 2, 1) * points.reshape(1, -1, 1, 3)
    slope = slope.reshape(count, -1, 6) * inner[..., None]
    hessian = slope.transpose(1, 2) @ slope
    # a little damping: flat structure along one direction must not throw the map away
    hessian += torch.diag_embed(0.01 * hessian.diagonal(dim1=1, dim2=2).mean(dim=1, keepdim=True).expand(-1, 6) + 1e-6)
    factor = torch.linalg.cholesky(hessian)
    best, best_affine = torch.full((count,), -1.0), affine.clone()
    for step in range(steps + 1):
        grid = (points @ affine[:, :2].transpose(1, 2)).reshape(count, len(line), len(line), 2)
        moved = grid_sample(image[:, None], grid, align_corners=False, padding_mode="border").reshape(count, -1)
        seen = ((grid.abs() <= 1).all(dim=-1).reshape(count, -1) & inner).float()
        a, b = _centred(moved, seen), _centred(fixed, seen)
        product_ = (a * b).sum(dim=1)
        value = product_ / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-6)
        value = torch.where(seen.sum(dim=1) >= _INSIDE * inner.sum(), value, torch.full_like(value, -1.0))
        better = value > best
        best = torch.where(better, value, best)
        best_affine[better] = affine[better]
        if step == steps:
            break
        gain = product_ / a.square().sum(dim=1).clamp_min(1e-6)
        error = (gain.clamp(0.2, 5.0)[:, None] * a - b) * seen
        move = torch.cholesky_solve(slope.transpose(1, 2) @ error[..., None], factor)[..., 0].clamp(-0.1, 0.1)
        change = torch.eye(3).repeat(count, 1, 1)
        change[:, :2] += move.reshape(count, 2, 3)
        affine = affine @ torch.linalg.inv(change)
    return best, best_affine


def _centred(values: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    mean = (values * seen).sum(dim=1, keepdim=True) / seen.sum(dim=1, keepdim=True).clamp_min(1)
    return (values - mean) * seen
