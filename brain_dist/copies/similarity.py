"""Similarity of images that are aligned with each other: correlation of their local structure.

Plain correlation cannot separate copies from different heads of similar outline: between different patients it reaches
0.96, while a sharpened copy drops to 0.87. Copies share their local structure. Each 64 x 64 thumbnail is therefore
normalised by its local mean and local standard deviation before it is correlated with the others. This is done on the
whole image and on the head alone, straight and mirrored; the highest of the four values counts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from typing import NamedTuple

import numpy as np

from brain_dist.common.scratch import scratch
from brain_dist.common.workers import in_threads

ALIGNED_THRESHOLD = 0.80  # similarity from which aligned images are copies; brain_dist.copies.search gives the evidence
_WINDOW = 9  # pixels of the 64 x 64 thumbnail over which local mean and standard deviation are taken
_BASIS = 256  # dimensions of the candidate search
_BLOCK = 512  # images per side of a block of the candidate search
_UNIT = np.float32(32767)  # of stored structures, whose components are between -1 and 1
_CHUNK = 128  # thumbnails processed at once: intermediate results stay in the processor's cache


@dataclass(frozen=True, eq=False)
class NearPairs:
    """M pairs of images with different pixels that show one picture, sorted.

    Attributes:
        first: int64 [M], position among the compared images; less than ``second``.
        second: int64 [M].
        similarity: float32 [M], from the threshold to 1.
        mirrored: bool [M], the pair agrees better when one of the two is flipped left to right.
        moved: bool [M], the pair agrees only after registration: one is cropped, shifted or rotated.
    """

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray
    mirrored: np.ndarray
    moved: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


Block = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # first, second, similarity and mirrored of some pairs


def aligned_pairs(
    thumbs: np.ndarray, *, threshold: float = ALIGNED_THRESHOLD, progress: Callable[[int, int], None] | None = None
) -> NearPairs:
    """All pairs among thumbnails uint8 [N, 2, 64, 64] (whole image, head alone) with at least this similarity.

    Comparing all pairs at full length would cost 4 x N² x 4096 products. Each unit vector is therefore projected onto
    the 256 main directions of a sample, and the norms of the residuals are kept as more coordinates. By the
    Cauchy-Schwarz inequality the product of these short vectors is never below the true similarity. Candidates found
    with them miss nothing, and only candidates are compared at full length.
    """
    count = len(thumbs)
    blocks: list[Block] = []
    starts = range(0, count, _BLOCK)
    done, total = 0, 2 * len(starts)
    # Full structures take 8 KB per thumbnail. They are kept in a file, so that memory stays small, and as integers:
    # conversion from float16 takes longer than the products.
    full = scratch((count, *thumbs.shape[2:]), np.int16)
    frames = [thumbs[:, frame] for frame in range(thumbs.shape[1])]
    for frame, bases in zip(frames, list(in_threads(_basis, frames)), strict=True):
        short = _shortened(frame, bases, full)
        compare = partial(_block_pairs, full, short, threshold)
        for block in in_threads(compare, starts):
            blocks += block
            done += 1
            if progress is not None:
                progress(done, total)
    return best_of_each(blocks, moved=False)


def best_of_each(blocks: Sequence[Block], *, moved: bool) -> NearPairs:
    """Sorted pairs of ``blocks`` of arrays [M] each; of several matches of a pair, the best is kept."""
    empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, bool))
    first, second, similarity, mirrored = (np.concatenate(column) for column in zip(empty, *blocks, strict=True))
    order = np.lexsort((mirrored, -similarity, second, first))
    repeated = (np.diff(first[order]) == 0) & (np.diff(second[order]) == 0)
    order = np.delete(order, np.flatnonzero(repeated) + 1)
    return NearPairs(first[order], second[order], similarity[order], mirrored[order], np.full(len(order), moved))


def _block_pairs(full: np.ndarray, short: Halves, threshold: float, low: int) -> list[Block]:
    """(i, j, similarity, mirrored) of the pairs i < j with i in the block that starts at ``low``."""
    blocks = []
    block = short.rows(low, low + _BLOCK)
    for start in range(low, len(full), _BLOCK):
        i, j, _ = pairs_above(block, short.rows(start, start + _BLOCK), threshold - 1e-3)
        i, j = i + low, j + start
        i, j = i[i < j], j[i < j]
        for mirrored, similarity in enumerate(_similarities(full, i, j)):
            keep = similarity >= threshold
            blocks.append((i[keep], j[keep], similarity[keep], np.full(int(keep.sum()), bool(mirrored))))
    return blocks


def structure(thumbs: np.ndarray) -> np.ndarray:
    """Local structure of thumbnails uint8 [N, 64, 64]: float32 [N, 4096] of length 1, or all 0 for a flat image."""
    vectors = np.empty((len(thumbs), thumbs.shape[1] * thumbs.shape[2]), dtype=np.float32)
    for chunk in chunks(len(thumbs)):
        vectors[chunk] = unit_vectors(local_structure(thumbs[chunk].astype(np.float32)))
    return vectors


def chunks(count: int) -> list[slice]:
    """Slices that cover ``count`` thumbnails, each small enough for the processor's cache."""
    return [slice(low, low + _CHUNK) for low in range(0, count, _CHUNK)]


def local_structure(pixels: np.ndarray) -> np.ndarray:
    """Float pixels [N, S, S] minus their local mean, divided by their local standard deviation."""
    mean = box_matrix(pixels.shape[-1], _WINDOW)
    result = pixels - mean @ pixels @ mean.T
    deviation = np.sqrt(np.maximum(mean @ (result * result) @ mean.T, 0.0))
    # The added constant keeps noise in an empty background from counting as much as anatomy.
    result /= deviation + (0.05 * pixels.std(axis=(1, 2), keepdims=True) + 0.5)
    return result


def unit_vectors(fields: np.ndarray) -> np.ndarray:
    """Fields [N, S, S] as vectors [N, S²] of mean 0 and length 1; all 0 for a flat field."""
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

    Two products with a small matrix filter a stack of thumbnails several times faster than scipy.ndimage.
    """
    matrix = np.zeros((size, size), dtype=np.float32)
    radius = len(weights) // 2
    for row, (offset, weight) in product(range(size), enumerate(weights, -radius)):
        column = row + offset
        column = -column - 1 if column < 0 else 2 * size - 1 - column if column >= size else column
        matrix[row, column] += weight
    return matrix


def even_and_odd(fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split fields [N, S, S] into their even and odd halves from left to right, each float [N, S² / 2].

    The lengths add up to that of the field. A mirrored field has the same even half and the negative odd half.
    """
    count, rows, columns = fields.shape
    fields = fields * np.sqrt(np.float32(0.5))
    left, right = fields[:, :, : columns // 2], fields[:, :, : columns // 2 - 1 : -1]
    size = rows * columns // 2
    return (left + right).reshape(count, size), (left - right).reshape(count, size)


def _basis(thumbs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Main directions of the even and odd halves of 256 to 512 thumbnails, or of all if there are fewer.

    Orthonormal float32 [2048, K] and [2048, L], K + L <= 256. A larger sample takes longer, and saves comparisons at
    full length, whose number grows with that of pairs.
    """
    size = min(max(256, len(thumbs) // 16), 512)
    sample = structure(thumbs[:: max(1, len(thumbs) // size)][:size])
    halves = [half.astype(np.float64) for half in even_and_odd(sample.reshape(-1, *thumbs.shape[1:]))]
    # The right singular vectors of the sample from its small Gram matrix: forty times faster than a plain SVD.
    spectra = [np.linalg.eigh(half @ half.T) for half in halves]
    powers = np.sort(np.concatenate([power for power, _ in spectra]))[-_BASIS:]

    def directions(half: np.ndarray, power: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        used = (power >= powers[0]) & (power > 1e-6 * powers[-1])
        return (half.T @ vectors[:, used] / np.sqrt(power[used])).astype(np.float32)

    even, odd = (directions(half, *spectrum) for half, spectrum in zip(halves, spectra, strict=True))
    return even, odd


def _shortened(thumbs: np.ndarray, bases: tuple[np.ndarray, np.ndarray], full: np.ndarray) -> Halves:
    """Short vectors of thumbnails, with up to 258 coordinates; fills ``full`` int16 [N, 64, 64] in steps of 1/32767."""
    size = bases[0].shape[1]
    even = np.empty((len(thumbs), size + 2), dtype=np.float32)  # and the norms of the residuals of both halves,
    odd = np.empty((len(thumbs), bases[1].shape[1]), dtype=np.float32)  # which have no sign: they may agree either way

    def fill(chunk: slice) -> None:
        fields = structure(thumbs[chunk]).reshape(-1, *thumbs.shape[1:])
        full[chunk] = np.rint(fields * _UNIT)
        shorts = even[chunk, :size], odd[chunk]
        for number, (half, basis, short) in enumerate(zip(even_and_odd(fields), bases, shorts, strict=True)):
            np.matmul(half, basis, out=short)
            residual = np.vecdot(half, half) - np.vecdot(short, short)
            even[chunk, size + number] = np.sqrt(np.maximum(residual, 0.0))

    for _ in in_threads(fill, chunks(len(thumbs))):
        pass
    return Halves(even, odd)


class Halves(NamedTuple):
    """N vectors, divided into coordinates that a mirrored image shares and coordinates that it has with other signs.

    Attributes:
        even: float32 [N, K].
        odd: float32 [N, L].
    """

    even: np.ndarray
    odd: np.ndarray

    def rows(self, start: int, stop: int) -> Halves:
        """Some of the vectors."""
        return Halves(self.even[start:stop], self.odd[start:stop])


def pairs_above(left: Halves, right: Halves, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of vectors of which the product with the other, or with the other mirrored, is at least ``threshold``.

    The product of mirrored vectors is that of the even minus that of the odd halves, so the higher of the two is that
    of the even halves plus the absolute value of that of the odd halves.

    Returns:
        Positions in ``left`` and ``right``, int64 [M] each, and the higher product, float32 [M].
    """
    products, odd = (_buffer(name, len(left.even), len(right.even), np.float32) for name in ("even", "odd"))
    np.matmul(left.even, right.even.T, out=products)
    np.matmul(left.odd, right.odd.T, out=odd)
    np.add(products, np.abs(odd, out=odd), out=products)
    above = np.greater_equal(products, threshold, out=_buffer("above", len(left.even), len(right.even), np.bool_))
    positions = np.flatnonzero(above)
    return *np.divmod(positions, len(right.even)), products.ravel()[positions]


def _buffer(name: str, rows: int, columns: int, kind: type) -> np.ndarray:
    """A reused buffer of this thread: allocating one costs more than the product that is written to it."""
    buffers = _thread_buffers.__dict__
    if (buffer := buffers.get(name)) is None or len(buffer) < rows * columns:
        buffer = buffers[name] = np.empty(rows * columns, dtype=kind)
    return buffer[: rows * columns].reshape(rows, columns)


_thread_buffers = threading.local()


def _similarities(full: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """float32 [2, len(i)]: correlation of full[i] with full[j] and with its mirror image; ``full`` [N, 64, 64]."""
    result = np.zeros((2, len(i)), dtype=np.float32)
    for chunk in chunks(len(i)):
        first, second = full[i[chunk]].astype(np.float32), full[j[chunk]].astype(np.float32)
        result[0, chunk] = np.einsum("nyx,nyx->n", first, second)
        result[1, chunk] = np.einsum("nyx,nyx->n", first, second[:, :, ::-1])
    return np.minimum(result / _UNIT**2, 1)  # rounding may exceed 1
