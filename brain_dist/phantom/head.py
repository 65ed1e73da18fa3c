"""The phantom's head around the brain: skull, face, neck and vessels, built from simple solids.

Coordinates are MNI millimetres: x to the right, y to the front, z up, origin at the anterior commissure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from brain_dist.phantom.solids import (
    MAX_DISTANCE,
    SolidUnion,
    capsule,
    closing,
    ellipsoid,
    signed_distance,
    smooth_min,
)

Array = np.ndarray


def head_distances(brain: Array, grid: Sequence[Array]) -> dict[str, Array]:
    """Signed distances (mm) to each structure of the head on a grid, float32 [X, Y, Z].

    Args:
        brain: bool [X, Y, Z], the brain.
        grid: coordinates (mm) along x, y and z, broadcastable to [X, Y, Z].
    """
    dura = ndimage.gaussian_filter(signed_distance(closing(brain, 7.0)), 1.0)
    dura -= 1.0  # the brain does not quite fill the skull
    vault = ndimage.gaussian_filter(signed_distance(closing(brain, 30.0)), 1.5)
    cavity = -(dura - 3)  # structures of the face must not enter the skull
    distances = {
        "dura": dura,
        "skin": _skin(vault, grid),
        "bone": np.maximum(_bone(grid), -(dura - 0.5)),
        "air": np.maximum(_air(grid), cavity),
        "fat": np.maximum(_fat(grid), cavity),
        "fluid": _fluid(grid),
        "nerve": _nerves(grid),
        "enhancing": _enhancing(grid, dura),
    }
    return {structure: np.asarray(distance, np.float32) for structure, distance in distances.items()}


def _skin(vault: Array, grid: Sequence[Array]) -> Array:
    """The outside of the head: skull vault plus scalp, joined with face, jaw, neck and ears."""
    x, y, z = grid
    temple = np.exp(-(((y - 28) / 34) ** 2) - ((z + 14) / 26) ** 2) * np.clip(np.abs(x) / 40 - 0.6, 0, 1)
    skin = vault - (13.5 + 9 * temple)
    skin = smooth_min(skin, ellipsoid(grid, (0, 30, -68), (66, 58, 58)), 16)  # face
    skin = smooth_min(skin, ellipsoid(grid, (0, 42, -112), (50, 44, 30)), 18)  # jaw
    skin = smooth_min(skin, capsule(grid, (0, -44, -60), (0, -44, -190), 64, 56), 20)  # neck
    skin = smooth_min(skin, capsule(grid, (0, 80, -38), (0, 94, -66), 8, 13), 12)  # nose
    skin = smooth_min(skin, ellipsoid(grid, (0, 84, -90), (22, 10, 12)), 8)  # lips
    for side in (-1, 1):
        skin = np.minimum(skin, ellipsoid(grid, (side * 86, -28, -42), (5, 13, 24)))
    return skin


def _bone(grid: Sequence[Array]) -> Array:
    """Bones of the skull base, face and neck; the vault is a shell around the dura."""
    bone = SolidUnion(grid)
    bone.rod([(0, -9, -29), (0, -17, -42), (0, -27, -60)], 5.0, 6.0, 3.5)  # clivus
    bone.rod([(7, -12, -38), (9, -22, -54)], 5.0, 4.0)
    bone.ball((0, 17, -41), (17, 14, 8))  # sphenoid body
    bone.rod([(12, -12, -40), (36, -24, -37), (60, -30, -38)], 6.0, 9.0, 13.0)  # petrous ridges
    bone.ball((56, -38, -48), (11, 14, 16))  # mastoids
    bone.rod([(15, 24, -26), (38, 24, -30), (55, 18, -28)], 4.5, 4.0)  # sphenoid wings
    bone.rod([(8, -34, -66), (24, -36, -62), (30, -60, -62), (12, -82, -56)], 4.0, 4.5)  # occipital base
    bone.rod([(0, 80, -26), (14, 80, -24), (36, 76, -24), (52, 58, -26)], 5.0, 4.5)  # supraorbital ridges
    bone.rod([(58, 50, -44), (64, 30, -48), (70, -8, -44)], 5.0, 3.5)  # zygomatic arches
    bone.rod([(46, 62, -58), (56, 52, -46)], 6.5, 5.0)
    bone.ball((0, 48, -80), (22, 30, 3.5))  # palate
    bone.rod([(0, 79, -84), (14, 74, -84), (24, 58, -84), (27, 38, -84)], 6.0, 5.5)  # maxilla
    bone.rod([(0, 74, -118), (18, 66, -116), (34, 36, -112), (44, 8, -106)], 7.5, 6.5)  # mandible
    bone.rod([(44, 8, -108), (50, 2, -80), (52, -4, -56)], 6.5, 5.0)
    bone.ball((0, -30, -78), (7, 6, 13))  # dens
    for level in range(5):  # vertebral bodies and spinous processes
        bone.ball((0, -31 - 1.5 * level, -94 - 15 * level), (12, 9.5, 6.2))
        bone.ball((0, -80 - 2 * level, -92 - 15 * level), (5, 9, 3.6))
    bone.rod([(0, -19, -76), (20, -30, -76), (22, -52, -76), (0, -66, -78)], 3.5, 4.5)  # atlas (C1)
    return bone.field


def _air(grid: Sequence[Array]) -> Array:
    air = SolidUnion(grid)
    air.ball((7, 20, -44), (7.5, 12, 7.5))  # sphenoid sinus
    air.ball((7, 46, -37), (6, 17, 9))  # ethmoid cells
    air.ball((7, 55, -60), (3.2, 24, 15))  # nasal cavity
    air.ball((30, 46, -64), (12, 14, 14))  # maxillary sinuses
    air.ball((9, 77, -18), (8, 3.5, 7))  # frontal sinuses
    air.rod([(0, 12, -66), (0, 2, -78), (0, -8, -100), (0, -12, -125), (0, -14, -156)], 7.0, 5.5, 5.0)  # pharynx
    air.ball((56, -36, -46), (9, 10, 12))  # mastoid cells
    air.rod([(48, -24, -44), (86, -24, -48)], 3.2, 3.2)  # ear canals
    air.ball((0, 46, -92), (20, 24, 1.8))  # between tongue and palate
    return air.field


def _fat(grid: Sequence[Array]) -> Array:
    fat = SolidUnion(grid)
    fat.ball((30, 46, -36), (15, 26, 15))  # orbits
    fat.ball((46, 44, -84), (9, 16, 15))  # cheeks
    fat.ball((0, -92, -120), (16, 18, 40))  # nape
    fat.ball((36, 0, -92), (7, 12, 22))
    return fat.field


def _fluid(grid: Sequence[Array]) -> Array:
    fluid = SolidUnion(grid)
    fluid.ball((32, 60, -36), (12.0, 12.0, 12.0))  # vitreous bodies
    fluid.rod([(0, -46, -68), (0, -52, -92), (0, -54, -120), (0, -57, -156)], 10.0, 8.5)  # spinal canal
    fluid.ball((0, -2, -24), (14, 10, 5))  # suprasellar cistern
    return fluid.field


def _nerves(grid: Sequence[Array]) -> Array:
    """Spinal cord, optic nerves, and (of similar signal) the eyes' muscles and lenses."""
    nerve = SolidUnion(grid)
    nerve.rod([(0, -47, -68), (0, -53, -92), (0, -55, -120), (0, -58, -156)], 6.5, 5.2)  # spinal cord
    nerve.rod([(30, 49, -36), (22, 32, -33), (12, 16, -24), (0, 3, -19)], 2.0, 2.0)  # optic nerves and chiasm
    for dx, dz in ((9.5, 0.0), (-9.5, 0.0), (0.0, 9.5), (0.0, -9.5)):  # rectus muscles
        nerve.rod([(32 + dx, 58, -36 + dz), (30 + 0.9 * dx, 46, -36 + 0.9 * dz), (20, 22, -31)], 1.6, 2.2, 1.4)
    nerve.ball((32, 70, -36), (5.0, 2.4, 5.0))  # lenses
    return nerve.field


def _enhancing(grid: Sequence[Array], dura: Array) -> Array:
    """What takes up contrast agent: vessels, venous sinuses, pituitary gland, choroid plexus, nasal mucosa."""
    x, y, z = grid
    bright = SolidUnion(grid)
    bright.ball((0, 3, -33), (6.2, 4.6, 3.2), False)  # pituitary gland and its stalk
    bright.rod([(0, 2, -30), (0, -1, -19)], 1.3, 1.0)
    bright.ball((12, 2, -35), (4, 10, 6.5))  # cavernous sinuses
    bright.ball((23, -38, 8), (3.5, 7, 4))  # choroid plexus
    bright.ball((2, -2, 9), (1.2, 6, 1.2))
    bright.rod([(0, -48, 10), (0, -68, -4), (0, -92, -19)], 1.8, 2.6)  # straight sinus
    transverse = [(0, -99, -20), (28, -94, -23), (50, -74, -28), (57, -52, -34), (46, -42, -52), (30, -34, -64)]
    bright.rod(transverse, 3.8, 3.4)  # transverse and sigmoid sinuses
    bright.rod([(8, 50, -52), (8, 66, -54)], 2.6, 2.2)  # nasal turbinates
    bright.rod([(8, 38, -62), (8, 70, -64)], 3.2, 2.6)
    bright.rod([(9, 34, -71), (9, 72, -72)], 3.2, 2.8)
    bright.rod([(0, -14, -44), (0, -13, -30), (0, -9, -22)], 1.5, 1.5)  # basilar artery
    bright.rod([(12, 0, -24), (22, 2, -20), (38, 4, -17)], 1.6, 1.2)  # middle cerebral arteries
    bright.rod([(4, 10, -16), (1.5, 26, -8), (1.5, 36, 8), (1.5, 30, 24), (1.5, 8, 34)], 1.2, 0.9)  # anterior
    bright.rod([(6, -14, -19), (18, -24, -14), (16, -42, 0)], 1.4, 1.0)  # posterior
    bright.rod([(1.5, 0, 14), (1.5, -30, 14), (1.5, -44, 6), (0, -50, 10)], 0.8, 1.4)  # internal cerebral veins
    sagittal = np.maximum(np.abs(x) - 4.2 * (1 + dura / 7.5), dura - 0.8)  # superior sagittal sinus
    return np.minimum(bright.field, np.where((z > 8) | ((y < -70) & (z > -20)), sagittal, MAX_DISTANCE))
