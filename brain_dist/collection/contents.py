"""What the readers of MATLAB, DICOM and NIfTI files have in common.

Each has a function for a file's header (→ :class:`Contents`) and one for its pixels (→ :data:`SlicePixels`). Both raise
:class:`~brain_dist.collection.pixels.BadImage` with the reason if the file cannot be used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from brain_dist.collection.pixels import BadImage

SlicePixels = Callable[[int | None], tuple[np.ndarray, str]]  # slice number → uint8 [H, W], type of the stored values


@dataclass(frozen=True)
class Contents:
    """What a file's header says.

    Attributes:
        slices: for each slice its number, None if the file has only one, and its attributes.
        label: class name, if the file states it.
        patient: patient, if the file states it.
        volume: whether the slices belong to one scan, so that they must stay together even if no patient is known.
    """

    slices: list[tuple[int | None, dict[str, Any]]]
    label: str | None = None
    patient: str | None = None
    volume: bool = False


def check_numeric(dtype: np.dtype) -> None:
    """Raise :class:`BadImage` unless values of this type are real numbers."""
    if dtype.kind not in "biuf":
        raise BadImage(f"contains values of type {dtype}, which are not real numbers")
