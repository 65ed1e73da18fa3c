"""Large temporary arrays on disk instead of in memory."""

from __future__ import annotations

import os
import tempfile

import numpy as np

from brain_dist.errors import UserError


def scratch(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array [*shape] in an unnamed file in the folder for temporary files ($TMPDIR); deleted with its last view.

    The space is allocated at once: if the disk filled up later, the process would be killed without a message.

    Raises:
        UserError: the disk is too small.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not size:
        return np.zeros(shape, dtype=dtype)  # an empty file cannot be memory-mapped
    try:
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype=dtype, mode="r+", shape=shape)
    except OSError as error:
        space = f"{size / 1e6:,.1f} MB in {tempfile.gettempdir()}"
        raise UserError(
            f"no {space} for intermediate results ({error.strerror}); set TMPDIR to a larger disk"
        ) from None


def gathered(source: np.ndarray, rows: np.ndarray, block: int = 1024) -> np.ndarray:
    """``source[rows]`` as a scratch array; ``source`` itself if ``rows`` are all its rows."""
    if len(rows) == len(source):
        return source
    result = scratch((len(rows), *source.shape[1:]), source.dtype.type)
    for start in range(0, len(rows), block):
        result[start : start + block] = source[rows[start : start + block]]
    return result


def concatenated(parts: list[np.ndarray]) -> np.ndarray:
    """The arrays [N_i, ...] one after another, as a scratch array [sum(N_i), ...]; a single array is not copied."""
    if len(parts) == 1:
        return parts[0]
    result = scratch((sum(len(part) for part in parts), *parts[0].shape[1:]), parts[0].dtype.type)
    start = 0
    for part in parts:
        result[start : start + len(part)] = part
        start += len(part)
    return result
