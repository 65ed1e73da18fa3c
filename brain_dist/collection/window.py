"""The gray window: which values of a slice become black and which white."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Window:
    """How a slice's values map to 8-bit gray, set in exactly one of three ways.

    Attributes:
        percentiles: (low, high), 0 to 100; these percentiles of each slice's own values become 0 and 255.
        center: middle of a fixed window, in the unit of the values; needs ``width``.
        width: width of a fixed window, > 0.
        file: use each DICOM file's own VOI LUT or first window.

    Raises:
        ValueError: not exactly one way is set, or a number is out of range.
    """

    percentiles: tuple[float, ...] | None = None
    center: float | None = None
    width: float | None = None
    file: bool = False

    def __post_init__(self) -> None:
        settings = self.as_dict()
        low, high = self.percentiles if self.percentiles and len(self.percentiles) == 2 else (0, 0)
        valid = {
            ("percentiles",): 0 <= low < high <= 100,
            ("center", "width"): self.width is not None and self.width > 0,
            ("file",): True,
        }
        if not valid.get(tuple(settings), False):
            raise ValueError(
                "must be {percentiles: [low, high]} from 0 to 100, {center: …, width: …} with width > 0, or file, "
                f"got {settings}"
            )

    def as_dict(self) -> dict[str, Any]:
        """The keys and values that a recipe's ``window`` has for this."""
        percentiles = self.percentiles and list(self.percentiles)
        settings = {**asdict(self), "percentiles": percentiles, "file": self.file or None}
        return {key: value for key, value in settings.items() if value is not None}

    def limits(self, values: np.ndarray) -> tuple[float, float]:
        """The values of an image [H, W] that become 0 and 255; minimum and maximum if the percentiles coincide."""
        if self.percentiles is None:
            assert self.center is not None
            assert self.width is not None
            return self.center - self.width / 2, self.center + self.width / 2
        low, high = np.percentile(values, self.percentiles)
        return (low, high) if high > low else (float(values.min()), float(values.max()))


DEFAULT_WINDOW = Window(percentiles=(0.5, 99.5))
