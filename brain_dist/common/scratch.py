"""Large arrays that wait on the disk instead of in memory."""

from __future__ import annotations

import os
import tempfile

import numpy as np

from brain_dist.errors import UserError


def scratch(shape: tuple[int, ...], kind: type) -> np.ndarray:
    """An array in a nameless file of the folder for temporary files ($TMPDIR); it goes with its last view.

    The room is taken at once: a disk that fills up later would end the process without a word.
    """
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    if not size:
        return np.zeros(shape, dtype=kind)  # no file can be mapped at length 0
    try:
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype=kind, mode="r+", shape=shape)
    except OSError as error:
        room = f"{size / 1e6:,.1f} MB in {tempfile.gettempdir()}"
        raise UserError(f"no {room} for intermediate results ({error.strerror}); set TMPDIR to a larger disk") from None


def gathered(source: np.ndarray, rows: np.ndarray, slab: int = 1024) -> np.ndarray:
    """``source[rows]`` as a scratch array; ``source`` itself where ``rows`` are all of it."""
    if len(rows) == len(source):
        return source
    made = scratch((len(rows), *source.shape[1:]), source.dtype.type)
    for low in range(0, len(rows), slab):
        made[low : low + slab] = source[rows[low : low + slab]]
    return made


def concatenated(parts: list[np.ndarray]) -> np.ndarray:
    """Arrays one after the other, as a scratch array; the only one as it is."""
    if len(parts) == 1:
        return parts[0]
    made = scratch((sum(len(part) for part in parts), *parts[0].shape[1:]), parts[0].dtype.type)
    start = 0
    for part in parts:
        made[start : start + len(part)] = part
        start += len(part)
    return made
