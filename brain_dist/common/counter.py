"""Random numbers as a pure function of what they are for.

A counter-based generator has no state to save, to split over ranks or to lose: the number for the rotation of sample 17
in epoch 3 is ``uniform(seed, "rotate", 3, 17)`` on any rank and in any order. The mixing function is the 64-bit
finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014, with Stafford's constants), applied once per word. It is
written out here because library generators promise neither vectorised counters nor the same stream in their next
version, and the order of samples of a run must not change with either.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)

UInt64Array = npt.NDArray[np.uint64]


def _mix(word: UInt64Array) -> UInt64Array:
    word = (word ^ (word >> np.uint64(30))) * _MIX1
    word = (word ^ (word >> np.uint64(27))) * _MIX2
    return word ^ (word >> np.uint64(31))


def bits(seed: int, purpose: str, *counters: int | npt.ArrayLike) -> UInt64Array:
    """64 random bits for each element of the broadcast ``counters``.

    Args:
        seed: seed of the run.
        purpose: name that separates unrelated draws ("order", "augment.flip", …).
        counters: non-negative integers or arrays of them (epoch, sample, …); they broadcast together.

    Returns:
        uint64 array of the broadcast shape.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is intended
        state = _mix(np.asarray(seed & 0xFFFFFFFFFFFFFFFF, dtype=np.uint64) + _GOLDEN)
        for counter in (zlib.crc32(purpose.encode()), *counters):
            state = _mix((state ^ np.asarray(counter).astype(np.uint64)) + _GOLDEN)
    return state


def uniform(seed: int, purpose: str, *counters: int | npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Like :func:`bits` and of the same shape [*counters], as float64 in [0, 1) with 53 random bits."""
    return (bits(seed, purpose, *counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53
