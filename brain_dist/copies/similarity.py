"""Pairs of pictures that lie on each other: correlation of their local structure.

Plain correlation cannot tell copies from two heads of like outline: between different patients it reaches 0.96, while a
sharpened copy falls to 0.87. What copies share is the local structure. So each 64 x 64 thumbnail, less its local mean
and divided by its local spread, is correlated with the others': over the whole picture and over the head alone,
straight and mirrored; the best counts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from brain_dist.common.scratch import scratch
from brain_dist.common.workers import in_threads

SAME = 0.80  # similarity from which two aligned images count as one picture; brain_dist.copies.search says why
_WINDOW = 9  # pixels of the 64 x 64 thumbnail over which mean and spread are local
_BASIS = 256  # dimensions of the candidate search
_BLOCK = 1024  # images a side of one block of the candidate search
_SLAB = 128  # thumbnails worked on at once: the intermediate results stay in a processor's cache


@dataclass(frozen=True, eq=False)
class Pairs:
    """M pairs, sorted.

    ``first`` < ``second`` int64 [M]; ``similarity`` float32 [M]; ``mirrored`` bool [M]: the pair agrees better when one
    of the two is flipped left to right.
    """

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray
    mirrored: np.ndarray


def aligned_pairs(
    thumbs: np.ndarray, *, same: float = SAME, progress: Callable[[int, int], None] | None = None
) -> Pairs:
    """All pairs among thumbnails uint8 [N, 2, 64, 64] (whole picture, head alone) of similarity ``same`` or more.

    Comparing all pairs at full length would cost N² x 4096 products four times over. Each unit vector is therefore
    projected onto the 256 main directions of a sample, and what is left of it is kept as one more coordinate: by the
    Cauchy-Schwarz inequality the product of those short vectors is never below the true similarity, so candidates
    found with them miss nothing, and only candidates are compared in full.
    """
    count = len(thumbs)
    found: list[tuple[np.ndarray, ...]] = []
    starts = range(0, count, _BLOCK)
    done, total = 0, 2 * len(starts)
    # Full structures, 8 KB a thumbnail, wait in a file: memory stays small, and none is computed twice
    full = scratch((count, *thumbs.shape[2:]), np.float16)
    frames = [thumbs[:, frame] for frame in range(thumbs.shape[1])]
    for frame, bases in zip(frames, list(in_threads(_basis, frames)), strict=True):
        short = _shortened(frame, bases, full)

        def rows(low: int, short: tuple[np.ndarray, np.ndarray] = short) -> list[tuple[np.ndarray, ...]]:
            return list(_block(full, short, low, same))

        for part in in_threads(rows, starts):
            found += part
            done += 1
            if progress is not None:
                progress(done, total)
    first, second, value, flipped = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((flipped, -value, second, first))  # the best of up to four finds of a pair comes first
    first, second, value, flipped = first[order], second[order], value[order], flipped[order]
    best = np.ones(len(first), dtype=bool)
    best[1:] = (np.diff(first) != 0) | (np.diff(second) != 0)
    return Pairs(first[best].astype(np.int64), second[best].astype(np.int64), value[best], flipped[best])


def _block(
    full: np.ndarray, short: tuple[np.ndarray, np.ndarray], low: int, same: float
) -> Iterator[tuple[np.ndarray, ...]]:
    """(i, j, similarity, mirrored) of the pairs i < j with i in the block from ``low`` on."""
    for start, mirrored in product(range(low, len(full), _BLOCK), (False, True)):
        i, j = above(short[0][low : low + _BLOCK], short[mirrored][start : start + _BLOCK], same - 1e-3)
        i, j = i + low, j + start
        i, j = i[i < j], j[i < j]
        value = _similarity(full, i, j, mirrored=mirrored)
        keep = value >= same
        yield i[keep], j[keep], value[keep], np.full(int(keep.sum()), mirrored)


def structure(thumbs: np.ndarray) -> np.ndarray:
    """Local structure of thumbnails uint8 [N, 64, 64]: float32 [N, 4096] of length 1, or all 0 for a flat picture."""
    made = np.empty((len(thumbs), thumbs.shape[1] * thumbs.shape[2]), dtype=np.float32)
    for low in range(0, len(thumbs), _SLAB):
        part = slice(low, low + _SLAB)
        made[part] = unit(detail(thumbs[part].astype(np.float32)))
    return made


def detail(pixels: np.ndarray) -> np.ndarray:
    """Float pixels [N, S, S] less their local mean, divided by their local spread."""
    mean = box_matrix(pixels.shape[-1], _WINDOW)
    result = pixels - mean @ pixels @ mean.T
    spread = np.sqrt(np.maximum(mean @ (result * result) @ mean.T, 0.0))
    # The floor keeps the noise of an empty background from counting as much as anatomy.
    result /= spread + (0.05 * pixels.std(axis=(1, 2), keepdims=True) + 0.5)
    return result


def unit(fields: np.ndarray) -> np.ndarray:
    """Fields [N, S, S] as vectors [N, S²] of mean 0 and length 1; all 0 for a flat one."""
    flat = fields.reshape(len(fields), fields.shape[1] * fields.shape[2])
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, length, out=np.zeros_like(flat), where=length > 1e-3)


@lru_cache(maxsize=8)
def box_matrix(size: int, width: int) -> np.ndarray:
    """float32 [size, size]: the mean over ``width`` neighbours as a matrix."""
    return kernel_matrix(size, np.full(width, 1 / width))


def kernel_matrix(size: int, weights: np.ndarray) -> np.ndarray:
    """float32 [size, size]: convolution with ``weights`` as a matrix, reflecting at the ends.

    Two products with a small matrix filter a stack of thumbnails several times faster than scipy.ndimage does.
    """
    matrix = np.zeros((size, size), dtype=np.float32)
    reach = len(weights) // 2
    for row, (offset, weight) in product(range(size), enumerate(weights, -reach)):
        column = row + offset
        column = -column - 1 if column < 0 else 2 * size - 1 - column if column >= size else column
        matrix[row, column] += weight
    return matrix


def halves(fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fields [N, S, S] → their even and odd parts from left to right, as vectors [N, S² / 2] of the same lengths.

    A mirrored field has the same even part and the negative odd one.
    """
    count, rows, columns = fields.shape
    fields = fields * np.sqrt(np.float32(0.5))
    left, right = fields[:, :, : columns // 2], fields[:, :, : columns // 2 - 1 : -1]
    size = rows * columns // 2
    return (left + right).reshape(count, size), (left - right).reshape(count, size)


def _basis(thumbs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal float32 [2048, K] and [2048, L], K + L <= 256: main directions of up to 512 thumbnails' halves."""
    sample = structure(thumbs[:: max(1, len(thumbs) // 512)][:512])
    wide = [half.astype(np.float64) for half in halves(sample.reshape(-1, *thumbs.shape[1:]))]
    # The right singular vectors of the sample by way of its small Gram matrix: forty times faster than a plain SVD.
    solved = [np.linalg.eigh(half @ half.T) for half in wide]
    powers = np.sort(np.concatenate([power for power, _ in solved]))[-_BASIS:]

    def directions(half: np.ndarray, power: np.ndarray, mix: np.ndarray) -> np.ndarray:
        used = (power >= powers[0]) & (power > 1e-6 * powers[-1])
        return (half.T @ mix[:, used] / np.sqrt(power[used])).astype(np.float32)

    even, odd = (directions(half, *pair) for half, pair in zip(wide, solved, strict=True))
    return even, odd


def _shortened(
    thumbs: np.ndarray, bases: tuple[np.ndarray, np.ndarray], full: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Short vectors float32 [N, <= 258] of thumbnails and of their mirror images; fills ``full`` [N, 64, 64]."""
    even = bases[0].shape[1] + 1
    made = np.empty((2, len(thumbs), even + bases[1].shape[1] + 1), dtype=np.float32)

    def fill(low: int) -> None:
        part = slice(low, low + _SLAB)
        fields = structure(thumbs[part]).reshape(-1, *thumbs.shape[1:])
        full[part] = fields
        for half, basis, place in zip(halves(fields), bases, (made[0, part, :even], made[0, part, even:]), strict=True):
            np.matmul(half, basis, out=place[:, :-1])
            rest = np.vecdot(half, half) - np.vecdot(place[:, :-1], place[:, :-1])
            place[:, -1] = np.sqrt(np.maximum(rest, 0.0))
        made[1, part, :even], made[1, part, even:] = made[0, part, :even], -made[0, part, even:]
        made[1, part, -1] *= -1  # what is left of two halves may agree either way

    for _ in in_threads(fill, range(0, len(thumbs), _SLAB)):
        pass
    return made[0], made[1]


def above(left: np.ndarray, right: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions (i, j) where the products of vectors left [N, K] and right [M, K] are at least ``least``."""
    products = _room(len(left), len(right), np.float32)
    np.matmul(left, right.T, out=products)
    found = np.greater_equal(products, least, out=_room(len(left), len(right), np.bool_))
    return np.divmod(np.flatnonzero(found), len(right))


def _room(rows: int, columns: int, kind: type) -> np.ndarray:
    """This thread's memory to use again and again: getting it anew costs more than the product it is for."""
    kept = _kept.__dict__
    if (room := kept.get(kind.__name__)) is None or len(room) < rows * columns:
        room = kept[kind.__name__] = np.empty(rows * columns, dtype=kind)
    return room[: rows * columns].reshape(rows, columns)


_kept = threading.local()


def _similarity(full: np.ndarray, i: np.ndarray, j: np.ndarray, *, mirrored: bool) -> np.ndarray:
    """float32 [len(i)]: correlation of full[i] with full[j] or its mirror image; ``full`` [N, 64, 64]."""
    result = np.zeros(len(i), dtype=np.float32)
    for low in range(0, len(i), _SLAB):
        part = slice(low, low + _SLAB)
        one, other = full[i[part]].astype(np.float32), full[j[part]].astype(np.float32)
        result[part] = np.einsum("nyx,nyx->n", one, other[:, :, ::-1] if mirrored else other)
    return result
