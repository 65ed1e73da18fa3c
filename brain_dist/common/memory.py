"""How this process keeps the memory of arrays that it no longer needs."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from malloc.h
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # bytes; glibc refuses more
_KEPT = 2**30  # bytes


def keep_freed_memory() -> None:
    """Reuse the memory of freed arrays of up to 32 MB instead of returning it to the kernel.

    glibc would return and fetch it again for each array of more than 128 KB. The kernel clears every page that it hands
    out, which can take longer than what is computed on it. At most 1 GB of free memory at the end of the heap is kept.
    Other C libraries have no such setting, and nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_TRIM_THRESHOLD, _KEPT)
