"""Signed distance fields (mm, negative inside) of simple solids, on a grid in MNI coordinates.

Distance fields interpolate smoothly, so that a slice has sharp edges at any pixel size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

Array = np.ndarray
Point = tuple[float, float, float]  # mm
SPACING = 2.0  # mm between the points of the grid
GRID_MIN = np.array([-104.0, -136.0, -156.0])  # mm, corners of the grid
GRID_MAX = np.array([104.0, 124.0, 112.0])
MAX_DISTANCE = 10.0  # mm, the distances to small structures are clipped here


def signed_distance(mask: Array) -> Array:
    """Signed distance (mm) on the grid to the border of a mask."""
    outside = ndimage.distance_transform_edt(~mask, sampling=SPACING)
    inside = ndimage.distance_transform_edt(mask, sampling=SPACING)
    return (outside - inside + np.where(mask, SPACING / 2, -SPACING / 2)).astype(np.float32)


def closing(mask: Array, radius: float) -> Array:
    """Morphological closing of a mask with a ball of ``radius`` mm."""
    dilated = ndimage.distance_transform_edt(~mask, sampling=SPACING) <= radius
    return ndimage.distance_transform_edt(dilated, sampling=SPACING) > radius


def ellipsoid(points: Sequence[Array], centre: Point, radii: Point) -> Array:
    r"""First-order signed distance to an ellipsoid: f / \|grad f\| with f = \|(points - centre) / radii\| - 1."""
    q = [(a - c) / r for a, c, r in zip(points, centre, radii, strict=True)]
    norm = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2) + 1e-6
    slope = np.sqrt((q[0] / radii[0]) ** 2 + (q[1] / radii[1]) ** 2 + (q[2] / radii[2]) ** 2) + 1e-6
    return norm * (norm - 1) / slope


def capsule(points: Sequence[Array], start: Point, end: Point, radius: float, end_radius: float | None = None) -> Array:
    """Signed distance to a rod with round ends, whose radius changes linearly to ``end_radius``."""
    axis = [e - s for s, e in zip(start, end, strict=True)]
    t = sum((p - s) * d for p, s, d in zip(points, start, axis, strict=True)) / sum(d * d for d in axis)
    t = np.clip(t, 0, 1)
    distance = np.sqrt(sum((p - s - t * d) ** 2 for p, s, d in zip(points, start, axis, strict=True)))
    return distance - (radius + t * ((radius if end_radius is None else end_radius) - radius))


def smooth_min(a: Array, b: Array, width: float) -> Array:
    """Minimum whose crease is rounded over ``width`` mm: a union of solids without a visible seam."""
    h = np.clip(0.5 + 0.5 * (b - a) / width, 0, 1)
    return b + (a - b) * h - width * h * (1 - h)


def coverage(distance: Array, width: float) -> Array:
    """Fraction of each pixel that is inside a solid, at signed distances to it, with a border ``width`` mm wide."""
    return np.clip(0.5 - distance / width, 0, 1)


class SolidUnion:
    """The union of many solids. Each is evaluated only in the box within ``MAX_DISTANCE`` of it.

    Args:
        grid: coordinates (mm) of the grid along x, y and z, broadcastable to its shape.

    Attributes:
        field: float32 [X, Y, Z], the union's signed distance, at most ``MAX_DISTANCE``.
    """

    def __init__(self, grid: Sequence[Array]) -> None:
        self._grid = grid
        self.field = np.full([axis.size for axis in grid], MAX_DISTANCE, np.float32)

    def ball(self, centre: Point, radii: Point, mirror: bool = True) -> None:
        """Add an ellipsoid and, unless it is on the midline, its mirror image."""
        for x in {centre[0], -centre[0]} if mirror else {centre[0]}:
            middle = (x, centre[1], centre[2])
            low = [c - r for c, r in zip(middle, radii, strict=True)]
            high = [c + r for c, r in zip(middle, radii, strict=True)]
            self._add(low, high, ellipsoid, middle, radii)

    def rod(self, points: Sequence[Point], *radii: float) -> None:
        """Add a chain of rods and, unless it is on the midline, its mirror image.

        ``radii`` are spread evenly over the chain and interpolated between.
        """
        radius = np.interp(np.linspace(0, 1, len(points)), np.linspace(0, 1, len(radii)), radii)
        for side in (1, -1) if any(point[0] for point in points) else (1,):
            chain = [(side * x, y, z) for x, y, z in points]
            for start, end, r, s in zip(chain, chain[1:], radius, radius[1:], strict=False):
                widest = max(r, s)
                low = [min(a, b) - widest for a, b in zip(start, end, strict=True)]
                high = [max(a, b) + widest for a, b in zip(start, end, strict=True)]
                self._add(low, high, capsule, start, end, float(r), float(s))

    def _add(self, low: Sequence[float], high: Sequence[float], solid: Callable[..., Array], *args: object) -> None:
        """Add a solid that is inside the box from ``low`` to ``high`` (mm)."""
        box = tuple(
            slice(
                max(0, int((a - MAX_DISTANCE - start) // SPACING)),
                max(0, int((b + MAX_DISTANCE - start) // SPACING) + 2),
            )
            for a, b, start in zip(low, high, GRID_MIN, strict=True)
        )
        grid = [axis[tuple(s if axis.shape[k] > 1 else slice(None) for k, s in enumerate(box))] for axis in self._grid]
        self.field[box] = np.minimum(self.field[box], solid(grid, *args))
