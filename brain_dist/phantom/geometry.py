"""Slice geometry: scanner coordinates → MNI coordinates, through a patient's affine and elastic deformation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from brain_dist.phantom.patients import KNOT_SPACING, Patient
from brain_dist.phantom.solids import GRID_MIN

Array = np.ndarray
# Directions of columns (to the right) and rows (downwards), and the normal, in radiological display
_DIRECTIONS = {
    "axial": ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "coronal": ((-1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "sagittal": ((0, -1, 0), (0, 0, -1), (1, 0, 0)),
}
_CENTRE_Z = {"axial": 0.0, "coronal": -6.0, "sagittal": -14.0}  # mm, height of the field of view's centre


@dataclass(frozen=True)
class Orientation:
    """The orientation of a slice in scanner coordinates.

    Attributes:
        right: [3] direction of the columns.
        down: [3] direction of the rows.
        normal: [3] direction through the slices.
        centre: [3] centre of the field of view, mm.
    """

    right: Array
    down: Array
    normal: Array
    centre: Array


def draw_orientation(plane: str, rng: np.random.Generator) -> Orientation:
    """The orientation of a plane, with a random in-plane rotation and shift."""
    right, down, normal = (np.array(direction, float) for direction in _DIRECTIONS[plane])
    angle = np.deg2rad(rng.normal(0, 3))
    right, down = np.cos(angle) * right + np.sin(angle) * down, np.cos(angle) * down - np.sin(angle) * right
    centre = np.array([0.0, -8.0, _CENTRE_Z[plane]]) + rng.normal(0, 4, 3)
    return Orientation(right, down, normal, centre)


def slice_centre(patient: Patient, orientation: Orientation, target: Array) -> Array:
    """Scanner coordinates (mm) of the centre of the slice through ``target`` (MNI mm)."""
    undeformed = target.reshape(3, 1)
    for _ in range(4):  # invert the displacement: it is smooth and small, so this fixed point converges at once
        undeformed = target.reshape(3, 1) - _elastic(patient, undeformed)
    scanner_point = np.linalg.solve(patient.affine, undeformed[:, 0] - patient.shift)
    normal, centre = orientation.normal, orientation.centre
    return centre + normal * float(normal @ (scanner_point - centre))


def slice_points(patient: Patient, orientation: Orientation, centre: Array, size: int) -> Array:
    """MNI coordinates (mm) of ``size`` x ``size`` points over the field of view, float32 [3, rows, columns].

    The deformation is smooth: it is computed on every third point and interpolated.
    """
    t = np.linspace(-0.5, 0.5, size // 3 + 2) * patient.scanner.fov
    right, down, middle = (patient.affine @ v for v in (orientation.right, orientation.down, centre))
    affine = (middle + patient.shift).reshape(3, 1, 1) + right.reshape(3, 1, 1) * t + down.reshape(3, 1, 1) * t[:, None]
    return resize((affine + _elastic(patient, affine)).astype(np.float32), size)


def resize(values: Array, size: int) -> Array:
    """Bilinear interpolation of the last two axes to ``size`` x ``size``; the corners stay in place."""
    for axis in (-1, -2):
        length = values.shape[axis]
        position = np.linspace(0, length - 1, size, dtype=np.float32)
        low = np.minimum(position.astype(int), length - 2)
        fraction = position - low
        if axis == -2:
            fraction = fraction[:, None]
        lower = np.take(values, low, axis)
        values = lower + fraction * (np.take(values, low + 1, axis) - lower)
    return values


def _elastic(patient: Patient, points: Array) -> Array:
    """Elastic displacement (mm) at ``points`` [3, …]."""
    index = (points - GRID_MIN.reshape(3, *[1] * (points.ndim - 1))) / KNOT_SPACING
    return np.stack([
        ndimage.map_coordinates(component, index, np.float32, order=3, mode="nearest", prefilter=False)
        for component in patient.warp
    ])  # fmt: skip
