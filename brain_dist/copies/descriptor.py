"""A compact descriptor of head images that tolerates small shifts, scalings and rotations.

Linear discriminant analysis (Fisher 1936) with one class per image: the image and slightly moved versions of it. It is
fitted to the audited images and to their mirror images. The mirror images make the result symmetric: every direction
is either even or odd from left to right, so mirroring a head only flips the sign of its odd coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from brain_dist.common.workers import in_threads
from brain_dist.copies.similarity import Halves, chunks, even_and_odd, kernel_matrix, local_structure, unit_vectors

SIDE = 20  # pixels per side of the described field: finds as much as 32, in half the time
WHOLE = np.array([0.0, 0.0, 1.0, 1.0])  # the window that covers the whole head
_DIMENSIONS = 48
_MAX_FITTED = 3000  # images used for the fit
_VERSIONS, _MOVES = 6, 24  # moved versions per image, drawn from this many different moves


@dataclass(frozen=True)
class Descriptor:
    """Maps head thumbnails to unit vectors of K + L <= 48 coordinates; see the module docstring.

    Attributes:
        mean: float32 [200], mean of the even halves.
        even: float32 [200, K], directions of the even halves.
        odd: float32 [200, L], directions of the odd halves.
    """

    mean: np.ndarray
    even: np.ndarray
    odd: np.ndarray

    @classmethod
    def fit(cls, heads: np.ndarray) -> Descriptor:
        """Fit to up to 3,000 of ``heads`` uint8 [N, 64, 64] and their moved versions. The fit is deterministic."""
        sample = np.array(heads[:: -(-len(heads) // _MAX_FITTED)])
        halves = list(zip(_moved_versions(sample), (True, False), strict=True))
        (mean, even, even_gain), (_, odd, odd_gain) = in_threads(lambda args: _discriminants(*args), halves)
        count = min(_DIMENSIONS, 2 * len(sample) - 1)
        threshold = np.sort(np.concatenate([even_gain, odd_gain]))[-count]
        return cls(mean, even[:, even_gain >= threshold], odd[:, odd_gain >= threshold])

    def __call__(self, heads: np.ndarray, windows: np.ndarray = WHOLE[None]) -> list[Halves]:
        """Descriptors of each of the windows [W, 4] of the heads; all 0 for a flat image."""
        described = []
        for fields in _window_halves(heads, windows):
            even, odd = (fields[0] - self.mean) @ self.even, fields[1] @ self.odd
            length = np.sqrt(np.vecdot(even, even) + np.vecdot(odd, odd))[:, None]
            scale = np.divide(1, length, out=np.zeros_like(length), where=length > 1e-6)
            described.append(Halves(even * scale, odd * scale))
        return described


def _window_halves(heads: np.ndarray, windows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Even and odd halves float32 [N, 200] of the unit-length structure of each window [W, 4]."""
    for structure in window_structures(heads, windows, SIDE):
        yield even_and_odd(unit_vectors(structure).reshape(-1, SIDE, SIDE))


def _moved_versions(sample: np.ndarray) -> np.ndarray:
    """Even and odd halves float32 [2, versions, N, 200] of randomly moved versions of ``sample``."""
    rng = np.random.default_rng(0)
    moves = WHOLE + rng.uniform(-0.04, 0.04, (_MOVES, 4))
    move_of = rng.integers(_MOVES, size=(_VERSIONS, len(sample)))
    halves = np.empty((2, _VERSIONS, len(sample), SIDE * SIDE // 2), dtype=np.float32)

    def fill(move: int) -> None:
        for version in range(_VERSIONS):
            rows = np.flatnonzero(move_of[version] == move)
            [(halves[0, version, rows], halves[1, version, rows])] = _window_halves(
                sample[rows], moves[move : move + 1]
            )

    for _ in in_threads(fill, range(_MOVES)):
        pass
    return halves


def _discriminants(versions: np.ndarray, subtract_mean: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit one half; ``versions`` [versions, N, D] is overwritten.

    Returns:
        The mean [D], directions [D, K], and how well each direction separates the images [K]. The mean of odd halves
        over images and their mirror images is 0, so it is not subtracted.
    """
    centres = versions.mean(axis=0)
    mean = centres.mean(axis=0) if subtract_mean else np.zeros_like(centres[0])
    size = len(mean)
    within = np.zeros((size, size), dtype=np.float64)
    for version in versions:
        version -= centres
        within += version.T @ version
    within /= versions.shape[0] * versions.shape[1]
    # a ridge: with few images the scatter within a class does not have full rank
    within += (0.1 * np.trace(within) / size + 1e-9) * np.eye(size)
    centres -= mean
    between = (centres.T @ centres).astype(np.float64) / len(centres)
    whiten = np.linalg.inv(np.linalg.cholesky(within))
    gain, vectors = np.linalg.eigh(whiten @ between @ whiten.T)
    directions = (whiten.T @ vectors[:, -_DIMENSIONS:]).astype(np.float32)
    return mean, directions, gain[-_DIMENSIONS:]


def window_structures(heads: np.ndarray, windows: np.ndarray, side: int) -> np.ndarray:
    """Slightly smoothed local structure float32 [W, N, side, side] of windows [W, 4] of thumbnails [N, 64, 64]."""
    size, smooth = heads.shape[-1], _gaussian(side, 1.0)
    # many windows crop an axis alike, so each way is resampled once
    (ways_x, x_of), (ways_y, y_of) = (
        np.unique(windows[:, axes], axis=0, return_inverse=True) for axes in ([0, 2], [1, 3])
    )
    across = np.concatenate([_resampling(*map(float, way), size, side).T for way in ways_x], axis=1)
    down = np.concatenate([_resampling(*map(float, way), size, side) for way in ways_y])
    result = np.empty((len(windows), len(heads), side, side), dtype=np.float32)
    for chunk in chunks(len(heads)):
        columns = (heads[chunk].astype(np.float32).reshape(-1, size) @ across).reshape(-1, size, across.shape[1])
        fields = (down @ columns).reshape(-1, len(ways_y), side, len(ways_x), side)
        for window in range(len(windows)):
            field = np.ascontiguousarray(fields[:, y_of[window], :, x_of[window]])
            result[window, chunk] = smooth @ local_structure(field) @ smooth.T
    return result


@lru_cache(maxsize=256)
def _resampling(low: float, high: float, size: int, side: int) -> np.ndarray:
    """float32 [side, size]: linear resampling of [low, high] of ``size`` pixels to ``side``, two samples per pixel."""
    positions = np.clip((low + (np.arange(2 * side) + 0.5) / (2 * side) * (high - low)) * size - 0.5, 0, size - 1)
    first = np.minimum(positions.astype(int), size - 2)
    matrix = np.zeros((2 * side, size), dtype=np.float32)
    rows = np.arange(2 * side)
    matrix[rows, first] += 1 - (positions - first)
    matrix[rows, first + 1] += positions - first
    return matrix.reshape(side, 2, size).mean(axis=1)


@lru_cache(maxsize=8)
def _gaussian(size: int, sigma: float) -> np.ndarray:
    offsets = np.arange(-4, 5)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    return kernel_matrix(size, weights / weights.sum())
