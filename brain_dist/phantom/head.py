"""The phantom's head around the brain: skull, face, neck and vessels, as signed distance fields of simple solids.

Coordinates are MNI millimetres: x to the right, y to the front, z up, origin at the anterior commissure. Distances are
negative inside. They interpolate smoothly, so that a slice has sharp edges at any pixel size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from scipy import ndimage

Array = np.ndarray
Point = tuple[float, float, float]  # mm
SPACING = 2.0  # mm between the points of the grid
GRID_MIN = np.array([-104.0, -136.0, -156.0])  # mm, corners of the grid
GRID_MAX = np.array([104.0, 124.0, 112.0])
MAX_DISTANCE = 10.0  # mm, the distances to small structures are clipped here

# Structure → ellipsoids (centre, radii). One that is not on the midline also has a mirror image.
_BALLS: dict[str, list[tuple[Point, Point]]] = {
    "bone": [
        ((0, 17, -41), (17, 14, 8)),  # sphenoid body
        ((56, -38, -48), (11, 14, 16)),  # mastoids
        ((0, 48, -80), (22, 30, 3.5)),  # palate
        ((0, -30, -78), (7, 6, 13)),  # dens
        *(((0, -31 - 1.5 * level, -94 - 15 * level), (12, 9.5, 6.2)) for level in range(5)),  # vertebral bodies
        *(((0, -80 - 2 * level, -92 - 15 * level), (5, 9, 3.6)) for level in range(5)),  # spinous processes
    ],
    "air": [
        ((7, 20, -44), (7.5, 12, 7.5)),  # sphenoid sinus
        ((7, 46, -37), (6, 17, 9)),  # ethmoid cells
        ((7, 55, -60), (3.2, 24, 15)),  # nasal cavity
        ((30, 46, -64), (12, 14, 14)),  # maxillary sinuses
        ((9, 77, -18), (8, 3.5, 7)),  # frontal sinuses
        ((56, -36, -46), (9, 10, 12)),  # mastoid cells
        ((0, 46, -92), (20, 24, 1.8)),  # between tongue and palate
    ],
    "fat": [
        ((30, 46, -36), (15, 26, 15)),  # orbits
        ((46, 44, -84), (9, 16, 15)),  # cheeks
        ((0, -92, -120), (16, 18, 40)),  # nape
        ((36, 0, -92), (7, 12, 22)),
    ],
    "fluid": [
        ((32, 60, -36), (12.0, 12.0, 12.0)),  # vitreous bodies
        ((0, -2, -24), (14, 10, 5)),  # suprasellar cistern
    ],
    "nerve": [((32, 70, -36), (5.0, 2.4, 5.0))],  # lenses, of a similar signal
    "enhancing": [
        ((0, 3, -33), (6.2, 4.6, 3.2)),  # pituitary gland
        ((12, 2, -35), (4, 10, 6.5)),  # cavernous sinuses
        ((23, -38, 8), (3.5, 7, 4)),  # choroid plexus
        ((2, -2, 9), (1.2, 6, 1.2)),
    ],
}
# Structure → chains of rods (points, radii), mirrored likewise. The radii are spread evenly over the chain.
_RODS: dict[str, list[tuple[Sequence[Point], tuple[float, ...]]]] = {
    "bone": [
        ([(0, -9, -29), (0, -17, -42), (0, -27, -60)], (5.0, 6.0, 3.5)),  # clivus
        ([(7, -12, -38), (9, -22, -54)], (5.0, 4.0)),
        ([(12, -12, -40), (36, -24, -37), (60, -30, -38)], (6.0, 9.0, 13.0)),  # petrous ridges
        ([(15, 24, -26), (38, 24, -30), (55, 18, -28)], (4.5, 4.0)),  # sphenoid wings
        ([(8, -34, -66), (24, -36, -62), (30, -60, -62), (12, -82, -56)], (4.0, 4.5)),  # occipital base
        ([(0, 80, -26), (14, 80, -24), (36, 76, -24), (52, 58, -26)], (5.0, 4.5)),  # supraorbital ridges
        ([(58, 50, -44), (64, 30, -48), (70, -8, -44)], (5.0, 3.5)),  # zygomatic arches
        ([(46, 62, -58), (56, 52, -46)], (6.5, 5.0)),
        ([(0, 79, -84), (14, 74, -84), (24, 58, -84), (27, 38, -84)], (6.0, 5.5)),  # maxilla
        ([(0, 74, -118), (18, 66, -116), (34, 36, -112), (44, 8, -106)], (7.5, 6.5)),  # mandible
        ([(44, 8, -108), (50, 2, -80), (52, -4, -56)], (6.5, 5.0)),
        ([(0, -19, -76), (20, -30, -76), (22, -52, -76), (0, -66, -78)], (3.5, 4.5)),  # atlas (C1)
    ],
    "air": [
        ([(0, 12, -66), (0, 2, -78), (0, -8, -100), (0, -12, -125), (0, -14, -156)], (7.0, 5.5, 5.0)),  # pharynx
        ([(48, -24, -44), (86, -24, -48)], (3.2, 3.2)),  # ear canals
    ],
    "fluid": [([(0, -46, -68), (0, -52, -92), (0, -54, -120), (0, -57, -156)], (10.0, 8.5))],  # spinal canal
    "nerve": [
        ([(0, -47, -68), (0, -53, -92), (0, -55, -120), (0, -58, -156)], (6.5, 5.2)),  # spinal cord
        ([(30, 49, -36), (22, 32, -33), (12, 16, -24), (0, 3, -19)], (2.0, 2.0)),  # optic nerves and chiasm
        *(
            ([(32 + dx, 58, -36 + dz), (30 + 0.9 * dx, 46, -36 + 0.9 * dz), (20, 22, -31)], (1.6, 2.2, 1.4))
            for dx, dz in ((9.5, 0.0), (-9.5, 0.0), (0.0, 9.5), (0.0, -9.5))  # rectus muscles, of a similar signal
        ),
    ],
    "enhancing": [
        ([(0, 2, -30), (0, -1, -19)], (1.3, 1.0)),  # pituitary stalk
        ([(0, -48, 10), (0, -68, -4), (0, -92, -19)], (1.8, 2.6)),  # straight sinus
        # transverse and sigmoid sinuses
        ([(0, -99, -20), (28, -94, -23), (50, -74, -28), (57, -52, -34), (46, -42, -52), (30, -34, -64)], (3.8, 3.4)),
        ([(8, 50, -52), (8, 66, -54)], (2.6, 2.2)),  # nasal turbinates
        ([(8, 38, -62), (8, 70, -64)], (3.2, 2.6)),
        ([(9, 34, -71), (9, 72, -72)], (3.2, 2.8)),
        ([(0, -14, -44), (0, -13, -30), (0, -9, -22)], (1.5, 1.5)),  # basilar artery
        ([(12, 0, -24), (22, 2, -20), (38, 4, -17)], (1.6, 1.2)),  # middle cerebral arteries
        ([(4, 10, -16), (1.5, 26, -8), (1.5, 36, 8), (1.5, 30, 24), (1.5, 8, 34)], (1.2, 0.9)),  # anterior
        ([(6, -14, -19), (18, -24, -14), (16, -42, 0)], (1.4, 1.0)),  # posterior
        ([(1.5, 0, 14), (1.5, -30, 14), (1.5, -44, 6), (0, -50, 10)], (0.8, 1.4)),  # internal cerebral veins
    ],
}


def head_distances(brain: Array, axes: Sequence[Array]) -> dict[str, Array]:
    """Signed distances (mm) to each structure of the head on a grid, float32 [X, Y, Z].

    Args:
        brain: bool [X, Y, Z], the brain.
        axes: coordinates (mm) of the grid along x, y and z.
    """
    x, y, z = grid = np.ix_(*axes)
    dura = ndimage.gaussian_filter(_signed_distance(_closing(brain, 7.0)), 1.0)
    dura -= 1.0  # the brain does not quite fill the skull
    vault = ndimage.gaussian_filter(_signed_distance(_closing(brain, 30.0)), 1.5)
    solids = {structure: _union(structure, axes) for structure in _BALLS}
    solids["bone"] = np.maximum(solids["bone"], -(dura - 0.5))
    for structure in ("air", "fat"):
        solids[structure] = np.maximum(solids[structure], -(dura - 3))  # they must not enter the skull
    sagittal_sinus = np.maximum(np.abs(x) - 4.2 * (1 + dura / 7.5), dura - 0.8)
    sagittal_sinus = np.where((z > 8) | ((y < -70) & (z > -20)), sagittal_sinus, MAX_DISTANCE)
    solids["enhancing"] = np.minimum(solids["enhancing"], sagittal_sinus)
    distances = {"dura": dura, "skin": _skin(vault, grid), **solids}
    return {structure: np.asarray(distance, np.float32) for structure, distance in distances.items()}


def _skin(vault: Array, grid: Sequence[Array]) -> Array:
    """The outside of the head: skull vault plus scalp, joined with face, jaw, neck and ears."""
    x, y, z = grid
    temple = np.exp(-(((y - 28) / 34) ** 2) - ((z + 14) / 26) ** 2) * np.clip(np.abs(x) / 40 - 0.6, 0, 1)
    skin = vault - (13.5 + 9 * temple)
    skin = smooth_min(skin, ellipsoid(grid, (0, 30, -68), (66, 58, 58)), 16)  # face
    skin = smooth_min(skin, ellipsoid(grid, (0, 42, -112), (50, 44, 30)), 18)  # jaw
    skin = smooth_min(skin, _capsule(grid, (0, -44, -60), (0, -44, -190), 64, 56), 20)  # neck
    skin = smooth_min(skin, _capsule(grid, (0, 80, -38), (0, 94, -66), 8, 13), 12)  # nose
    skin = smooth_min(skin, ellipsoid(grid, (0, 84, -90), (22, 10, 12)), 8)  # lips
    for side in (-1, 1):
        skin = np.minimum(skin, ellipsoid(grid, (side * 86, -28, -42), (5, 13, 24)))
    return skin


def _union(structure: str, axes: Sequence[Array]) -> Array:
    """Signed distance float32 [X, Y, Z] to the solids of a structure, at most ``MAX_DISTANCE``.

    Each solid is evaluated only in the box within ``MAX_DISTANCE`` of it.
    """
    field = np.full([len(axis) for axis in axes], MAX_DISTANCE, np.float32)
    for low, high, solid, arguments in _solids(structure):
        first = np.maximum(0, (low - MAX_DISTANCE - GRID_MIN) // SPACING).astype(int)
        end = np.maximum(0, (high + MAX_DISTANCE - GRID_MIN) // SPACING + 2).astype(int)
        box = tuple(map(slice, first, end))
        grid = np.ix_(*(axis[part] for axis, part in zip(axes, box, strict=True)))
        field[box] = np.minimum(field[box], solid(grid, *arguments))
    return field


def _solids(structure: str) -> Iterator[tuple[Array, Array, Callable[..., Array], tuple[object, ...]]]:
    """Each ball and rod of a structure: two corners of its box (mm), its distance function, and the arguments."""
    for (x, y, z), radii in _BALLS.get(structure, ()):
        for centre in {(x, y, z), (-x, y, z)}:
            yield np.subtract(centre, radii), np.add(centre, radii), ellipsoid, (centre, radii)
    for points, widths in _RODS.get(structure, ()):
        radius = np.interp(np.linspace(0, 1, len(points)), np.linspace(0, 1, len(widths)), widths).tolist()
        for side in (1, -1) if any(x for x, _, _ in points) else (1,):
            chain = [(side * x, y, z) for x, y, z in points]
            for ends, (r, s) in zip(pairwise(chain), pairwise(radius), strict=True):
                widest = max(r, s)
                yield np.min(ends, 0) - widest, np.max(ends, 0) + widest, _capsule, (*ends, r, s)


def ellipsoid(points: Sequence[Array], centre: Point, radii: Point) -> Array:
    r"""First-order signed distance to an ellipsoid: f / \|grad f\| with f = \|(points - centre) / radii\| - 1."""
    q = [(a - c) / r for a, c, r in zip(points, centre, radii, strict=True)]
    norm = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2) + 1e-6
    slope = np.sqrt((q[0] / radii[0]) ** 2 + (q[1] / radii[1]) ** 2 + (q[2] / radii[2]) ** 2) + 1e-6
    return norm * (norm - 1) / slope


def _capsule(points: Sequence[Array], start: Point, end: Point, radius: float, end_radius: float) -> Array:
    """Signed distance to a rod with round ends, whose radius changes linearly to ``end_radius``."""
    axis = [e - s for s, e in zip(start, end, strict=True)]
    t = sum((p - s) * d for p, s, d in zip(points, start, axis, strict=True)) / sum(d * d for d in axis)
    t = np.clip(t, 0, 1)
    distance = np.sqrt(sum((p - s - t * d) ** 2 for p, s, d in zip(points, start, axis, strict=True)))
    return distance - (radius + t * (end_radius - radius))


def smooth_min(a: Array, b: Array, width: float) -> Array:
    """Minimum whose crease is rounded over ``width`` mm: a union of solids without a visible seam."""
    h = np.clip(0.5 + 0.5 * (b - a) / width, 0, 1)
    return b + (a - b) * h - width * h * (1 - h)


def coverage(distance: Array, width: float) -> Array:
    """Fraction of each pixel that is inside a solid, at signed distances to it, with a border ``width`` mm wide."""
    return np.clip(0.5 - distance / width, 0, 1)


def _signed_distance(mask: Array) -> Array:
    """Signed distance (mm) on the grid to the border of a mask."""
    outside = ndimage.distance_transform_edt(~mask, sampling=SPACING)
    inside = ndimage.distance_transform_edt(mask, sampling=SPACING)
    return (outside - inside + np.where(mask, SPACING / 2, -SPACING / 2)).astype(np.float32)


def _closing(mask: Array, radius: float) -> Array:
    """Morphological closing of a mask with a ball of ``radius`` mm."""
    dilated = ndimage.distance_transform_edt(~mask, sampling=SPACING) <= radius
    return ndimage.distance_transform_edt(dilated, sampling=SPACING) > radius
