"""The settings of a phantom collection."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from brain_dist.errors import UserError

GENERATOR = 2  # increase it whenever the same settings give other bytes
PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class PhantomSettings:
    """What decides the bytes of a phantom collection.

    Attributes:
        seed: seed of everything that is drawn.
        patients: number of patients.
        slices: number of slices of each patient.
        size: pixels per side.
        planes: planes of the slices.
        plant: number of planted copies, as a fraction of the slices.
        published: divide the patients between two folders, as published collections do.

    Raises:
        UserError: a setting is out of range.
    """

    seed: int
    patients: int
    slices: int
    size: int
    planes: tuple[str, ...] = PLANES
    plant: float = 0.0
    published: bool = False

    def __post_init__(self) -> None:
        limits = {
            "patients": (8 if self.published else 4, 1_000_000),  # each folder needs one of each class
            "slices": (1, 1000),
            "size": (64, 1024),
            "seed": (0, 2**63),
            "plant": (0, 1),
        }
        for name, (low, high) in limits.items():
            check_range(name, getattr(self, name), low, high)
        if not self.planes or not set(self.planes) <= set(PLANES):
            raise UserError(f"--planes {','.join(self.planes)} must be one or more of {', '.join(PLANES)}")

    def as_dict(self) -> dict[str, Any]:
        """The settings as ``phantom.json`` stores them."""
        return {"generator": GENERATOR, **asdict(self), "planes": list(self.planes)}


def check_range(name: str, value: float, low: int, high: int) -> None:
    """Raise :class:`UserError` unless ``low`` ≤ ``value`` ≤ ``high``."""
    if not low <= value <= high:
        raise UserError(f"--{name} {value} must be from {low} to {high}")
