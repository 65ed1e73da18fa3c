"""A short description of a head in which small shifts, scales and turns matter little and the person matters much.

Linear discriminant analysis (Fisher 1936) in which an image's own slightly moved versions are a class, fitted to the
audited images themselves and to their mirror images. Those make what it learns symmetric: every direction is either
even or odd from left to right, so that a mirrored head has the same numbers with the odd ones' signs turned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from brain_dist.common.workers import in_threads
from brain_dist.copies.similarity import detail, halves, kernel_matrix, unit

SIDE = 20  # pixels a side of the described field: finds as much as 32, in half the time
WHOLE = np.array([0.0, 0.0, 1.0, 1.0])  # the window that is all of a head
_DIMENSIONS = 48
_FITTED, _VERSIONS, _MOVES = 3000, 6, 24  # images at most, versions of each, and different moves among those
_SLAB = 128  # heads worked on at once: the intermediate results stay in a processor's cache


@dataclass(frozen=True)
class Descriptor:
    """Head thumbnails → unit vectors float32 [N, K], K <= 48; see the module's text.

    ``mean`` [200] of the even halves; ``even`` [200, K - L] and ``odd`` [200, L]: directions of the two halves.
    """

    mean: np.ndarray
    even: np.ndarray
    odd: np.ndarray

    @classmethod
    def fit(cls, heads: np.ndarray) -> Descriptor:
        """Learn it from up to 3,000 of ``heads`` uint8 [N, 64, 64] and their moved versions; always the same result."""
        rng = np.random.default_rng(0)
        sample = np.array(heads[:: -(-len(heads) // _FITTED)])
        moves = WHOLE + rng.uniform(-0.04, 0.04, (_MOVES, 4))
        which = rng.integers(_MOVES, size=(_VERSIONS, len(sample)))
        versions = np.empty((2, _VERSIONS, len(sample), SIDE * SIDE // 2), dtype=np.float32)

        def fill(number: int) -> None:
            for version, chosen in zip(range(_VERSIONS), which, strict=True):
                rows = np.flatnonzero(chosen == number)
                moved = unit(field(sample[rows], moves[number], SIDE)).reshape(-1, SIDE, SIDE)
                versions[0, version, rows], versions[1, version, rows] = halves(moved)

        for _ in in_threads(fill, range(_MOVES)):
            pass
        (mean, even, gain_even), (_, odd, gain_odd) = in_threads(
            _discriminants, list(zip(versions, (True, False), strict=True))
        )
        # the best of both kinds
        least = np.sort(np.concatenate([gain_even, gain_odd]))[-min(_DIMENSIONS, 2 * len(sample) - 1) :][0]
        return cls(mean, even[:, gain_even >= least], odd[:, gain_odd >= least])

    def __call__(self, heads: np.ndarray, window: np.ndarray = WHOLE) -> np.ndarray:
        """Descriptors of a window of the heads."""
        even, odd = halves(unit(field(heads, window, SIDE)).reshape(-1, SIDE, SIDE))
        short = np.concatenate([(even - self.mean) @ self.even, odd @ self.odd], axis=1)
        length = np.linalg.norm(short, axis=1, keepdims=True)
        return np.divide(short, length, out=np.zeros_like(short), where=length > 1e-6)

    def mirrored(self, described: np.ndarray) -> np.ndarray:
        """What the heads' mirror images are described by."""
        signs = np.ones(described.shape[1], dtype=np.float32)
        signs[self.even.shape[1] :] = -1
        return described * signs


def _discriminants(given: tuple[np.ndarray, bool]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Halves [versions, N, D] → their mean, directions [D, K], and how far each one tells the images apart.

    An odd half's mean over pictures and their mirror images is 0.
    """
    versions, centred = given
    centres = versions.mean(axis=0)
    mean = centres.mean(axis=0) if centred else np.zeros_like(centres[0])
    size = len(mean)
    within = np.zeros((size, size), dtype=np.float64)
    for version in versions:
        version -= centres
        within += version.T @ version
    within /= versions.shape[0] * versions.shape[1]
    # a ridge: with few images the scatter inside a class is not of full rank
    within += (0.1 * np.trace(within) / size + 1e-9) * np.eye(size)
    centres -= mean
    between = (centres.T @ centres).astype(np.float64) / len(centres)
    whiten = np.linalg.inv(np.linalg.cholesky(within))
    gain, mix = np.linalg.eigh(whiten @ between @ whiten.T)
    leading = (whiten.T @ mix[:, -_DIMENSIONS:]).astype(np.float32)
    return mean, leading, gain[-_DIMENSIONS:]


def field(heads: np.ndarray, window: np.ndarray, side: int) -> np.ndarray:
    """Local structure of a window of thumbnails uint8 [N, 64, 64]: float32 [N, side, side], smoothed a little."""
    left, top, right, bottom = (float(edge) for edge in window)
    size, smooth = heads.shape[-1], _gauss(side, 1.0)
    down, across = _resample(top, bottom, size, side), _resample(left, right, size, side).T
    made = np.empty((len(heads), side, side), dtype=np.float32)
    for part in slabs(len(heads)):
        made[part] = smooth @ detail(down @ heads[part].astype(np.float32) @ across) @ smooth.T
    return made


def slabs(count: int) -> Iterator[slice]:
    """Slices that cover ``count`` heads, as many at once as a processor's cache holds."""
    return (slice(low, low + _SLAB) for low in range(0, count, _SLAB))


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
