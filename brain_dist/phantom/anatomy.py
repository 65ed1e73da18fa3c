"""The phantom's head: the MNI152 T1 brain and, around it, a skull, face and neck built from simple solids.

The template is brain-extracted, so everything outside the brain is synthetic. It is kept as signed distance fields
(mm, negative inside) on a 2 mm grid: they interpolate smoothly, so a slice of any pixel size has crisp edges.
Coordinates are MNI millimetres throughout: x to the right, y to the front, z up, origin at the anterior commissure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import nibabel
import numpy as np
from scipy import ndimage

Array = np.ndarray
FIELDS = ("dura", "skin", "bone", "air", "fat", "fluid", "nerve", "enhancing")
STEP = 2.0  # mm, spacing of the distance fields
LOW = np.array([-104.0, -136.0, -156.0])  # mm, the corner of the distance fields
HIGH = np.array([104.0, 124.0, 112.0])
REACH = 10.0  # mm, distances of local structures are only known this far and clipped beyond
NOISE_SIDE = 64  # voxels, side of the periodic texture cube


@dataclass(frozen=True)
class Atlas:
    """The anatomy all patients are deformed from.

    ``brain`` uint8 [X, Y, Z] T1 intensity at 1 mm with voxel (0, 0, 0) at ``brain_origin``; ``fields`` float32
    [len(FIELDS), X, Y, Z] signed distances in mm at 2 mm from ``LOW``; ``noise`` float32 [2, 64, 64, 64] periodic
    textures (fine, coarse), mean 0 and standard deviation 1; ``white`` float32 [N, 3] points deep in white matter;
    ``surface`` float32 [N, 3] points on the dura and ``inward`` float32 [N, 3] their unit normals into the skull.
    """

    brain: Array
    brain_origin: Array
    fields: Array
    noise: Array
    white: Array
    surface: Array
    inward: Array

    def sample(self, name: str, points: Array) -> Array:
        """Signed distance (mm) of field ``name`` at ``points`` [3, …] (mm)."""
        index = (points - LOW.reshape(3, *[1] * (points.ndim - 1))) / STEP
        return ndimage.map_coordinates(self.fields[FIELDS.index(name)], index, order=1, mode="nearest", prefilter=False)


@lru_cache(maxsize=1)
def load_atlas() -> Atlas:
    """Read nilearn's packaged MNI152 volumes and build the head around them (about two seconds, once a process)."""
    brain, affine = _template("t1")
    white, _ = _template("wm")
    origin = affine[:3, 3]
    grid = np.meshgrid(*[np.arange(a, b + 1, STEP, dtype=np.float32) for a, b in zip(LOW, HIGH, strict=True)],
                       indexing="ij", sparse=True)  # fmt: skip
    cavity = _on_grid(brain > 0, origin, grid)
    fields = _head(cavity, grid)
    dura = fields[0]
    # Averaging many brains blurred the template: sharpening brings the sulci back.
    sharp = brain.astype(np.float32)
    sharp += 0.9 * (sharp - ndimage.gaussian_filter(sharp, 1.6))
    sharp[brain == 0] = 0
    brain = np.clip(sharp, 0, 255).astype(np.uint8)

    deep = np.argwhere(_on_grid(white > 150, origin, grid) & (dura < -12)) * STEP + LOW
    edge = np.argwhere(np.abs(dura) < 0.7 * STEP)
    gradient = np.stack([ndimage.sobel(dura, axis)[tuple(edge.T)] for axis in range(3)], -1)
    inward = -gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-6)
    return Atlas(brain, origin, fields, _textures(), deep.astype(np.float32),
                 (edge * STEP + LOW).astype(np.float32), inward.astype(np.float32))  # fmt: skip


def _template(kind: str) -> tuple[Array, Array]:
    """One packaged MNI152 volume (uint8, 1 mm) and its affine; nilearn's loaders give the same but take seconds."""
    name = f"datasets/data/mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    with resources.as_file(resources.files("nilearn").joinpath(name)) as path:
        image = nibabel.Nifti1Image.from_filename(path)
        return np.asarray(image.dataobj), image.affine


def _on_grid(volume: Array, origin: Array, grid: Sequence[Array]) -> Array:
    """Nearest values of a 1 mm volume on the distance fields' grid; False outside the volume."""
    result = np.zeros([axis.size for axis in grid], bool)
    inside, index = [], []
    for axis, start, size in zip(grid, origin, volume.shape, strict=True):
        voxel = np.rint(axis.ravel() - start).astype(int)
        keep = (voxel >= 0) & (voxel < size)
        inside.append(np.flatnonzero(keep))
        index.append(voxel[keep])
    result[np.ix_(*inside)] = volume[np.ix_(*index)]
    return result


def _textures() -> Array:
    """Two periodic random textures: blobs of about 2 voxels and of about 5 voxels."""
    rng = np.random.default_rng(20240229)
    cubes = []
    for sigma in (1.2, 2.6):
        cube = ndimage.gaussian_filter(rng.standard_normal([NOISE_SIDE] * 3), sigma, mode="wrap")
        cubes.append((cube - cube.mean()) / cube.std())
    return np.stack(cubes).astype(np.float32)


def _signed_distance(inside: Array) -> Array:
    """Signed distance (mm) to the border of a mask, negative inside."""
    out = ndimage.distance_transform_edt(~inside, sampling=STEP)
    within = ndimage.distance_transform_edt(inside, sampling=STEP)
    return (out - within + np.where(inside, STEP / 2, -STEP / 2)).astype(np.float32)


def _closing(inside: Array, radius: float) -> Array:
    """Morphological closing with a ball of ``radius`` mm."""
    grown = ndimage.distance_transform_edt(~inside, sampling=STEP) <= radius
    return ndimage.distance_transform_edt(grown, sampling=STEP) > radius


def ellipsoid(p: Sequence[Array], centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Array:
    """First-order signed distance to an ellipsoid: f / |grad f| with f = |p / r| - 1."""
    q = [(a - c) / r for a, c, r in zip(p, centre, radii, strict=True)]
    norm = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2) + 1e-6
    slope = np.sqrt((q[0] / radii[0]) ** 2 + (q[1] / radii[1]) ** 2 + (q[2] / radii[2]) ** 2) + 1e-6
    return norm * (norm - 1) / slope


def capsule(p: Sequence[Array], a: tuple[float, ...], b: tuple[float, ...], radius: float, end: float = -1.0) -> Array:
    """Signed distance to a rod from ``a`` to ``b``, its radius running from ``radius`` to ``end`` (default: even)."""
    axis = [q - s for s, q in zip(a, b, strict=True)]
    t = sum((v - s) * d for v, s, d in zip(p, a, axis, strict=True)) / sum(d * d for d in axis)
    t = np.clip(t, 0, 1)
    away = np.sqrt(sum((v - s - t * d) ** 2 for v, s, d in zip(p, a, axis, strict=True)))
    return away - (radius + t * ((end if end >= 0 else radius) - radius))


def smooth_min(a: Array, b: Array, width: float) -> Array:
    """Minimum whose crease is rounded over ``width`` mm: joins solids without a seam."""
    h = np.clip(0.5 + 0.5 * (b - a) / width, 0, 1)
    return b + (a - b) * h - width * h * (1 - h)


class _Solids:
    """Unions of solids, each evaluated only in the box it can reach."""

    def __init__(self, grid: Sequence[Array]) -> None:
        self.grid = grid
        self.field = np.full([axis.size for axis in grid], REACH, np.float32)

    def add(self, low: tuple[float, ...], high: tuple[float, ...], shape, *args) -> None:
        box = tuple(
            slice(max(0, int((a - REACH - start) // STEP)), max(0, int((b + REACH - start) // STEP) + 2))
            for a, b, start in zip(low, high, LOW, strict=True)
        )
        local = [axis[tuple(s if axis.shape[k] > 1 else slice(None) for k, s in enumerate(box))] for axis in self.grid]
        self.field[box] = np.minimum(self.field[box], shape(local, *args))

    def ball(self, centre: tuple[float, float, float], radii: tuple[float, float, float], mirror: bool = True) -> None:
        for x in {centre[0], -centre[0]} if mirror else {centre[0]}:
            c = (x, centre[1], centre[2])
            low = tuple(a - r for a, r in zip(c, radii, strict=True))
            high = tuple(a + r for a, r in zip(c, radii, strict=True))
            self.add(low, high, ellipsoid, c, radii)

    def rod(self, points: list[tuple[float, float, float]], *radii: float) -> None:
        """A chain of rods, and its mirror image where it leaves the midline."""
        steps = np.interp(np.linspace(0, 1, len(points)), np.linspace(0, 1, len(radii)), radii)
        for side in (1, -1) if any(p[0] for p in points) else (1,):
            chain = [(side * x, y, z) for x, y, z in points]
            for a, b, r, s in zip(chain, chain[1:], steps, steps[1:], strict=False):
                wide = max(r, s)
                low = tuple(min(u, v) - wide for u, v in zip(a, b, strict=True))
                high = tuple(max(u, v) + wide for u, v in zip(a, b, strict=True))
                self.add(low, high, capsule, a, b, float(r), float(s))


def _head(brain: Array, grid: Sequence[Array]) -> Array:
    """All distance fields, in the order of ``FIELDS``."""
    x, y, z = grid
    dura = ndimage.gaussian_filter(_signed_distance(_closing(brain, 7.0)), 1.0)
    dura -= 1.0  # the brain does not quite fill the skull
    vault = ndimage.gaussian_filter(_signed_distance(_closing(brain, 30.0)), 1.5)
    skin = _skin(vault, grid)

    bone = _Solids(grid)
    bone.rod([(0, -9, -29), (0, -17, -42), (0, -27, -60)], 5.0, 6.0, 3.5)  # clivus
    bone.rod([(7, -12, -38), (9, -22, -54)], 5.0, 4.0)
    bone.ball((0, 17, -41), (17, 14, 8))  # sphenoid body
    bone.rod([(12, -12, -40), (36, -24, -37), (60, -30, -38)], 6.0, 9.0, 13.0)  # petrous ridges
    bone.ball((56, -38, -48), (11, 14, 16))  # mastoids
    bone.rod([(15, 24, -26), (38, 24, -30), (55, 18, -28)], 4.5, 4.0)  # sphenoid wings
    bone.rod([(8, -34, -66), (24, -36, -62), (30, -60, -62), (12, -82, -56)], 4.0, 4.5)  # occipital base
    bone.rod([(0, 80, -26), (14, 80, -24), (36, 76, -24), (52, 58, -26)], 5.0, 4.5)  # brows
    bone.rod([(58, 50, -44), (64, 30, -48), (70, -8, -44)], 5.0, 3.5)  # cheek arches
    bone.rod([(46, 62, -58), (56, 52, -46)], 6.5, 5.0)
    bone.ball((0, 48, -80), (22, 30, 3.5))  # palate
    bone.rod([(0, 79, -84), (14, 74, -84), (24, 58, -84), (27, 38, -84)], 6.0, 5.5)  # upper jaw
    bone.rod([(0, 74, -118), (18, 66, -116), (34, 36, -112), (44, 8, -106)], 7.5, 6.5)  # lower jaw
    bone.rod([(44, 8, -108), (50, 2, -80), (52, -4, -56)], 6.5, 5.0)
    bone.ball((0, -30, -78), (7, 6, 13))  # dens
    for level in range(5):  # vertebral bodies and the tips of their arches
        bone.ball((0, -31 - 1.5 * level, -94 - 15 * level), (12, 9.5, 6.2))
        bone.ball((0, -80 - 2 * level, -92 - 15 * level), (5, 9, 3.6))
    bone.rod([(0, -19, -76), (20, -30, -76), (22, -52, -76), (0, -66, -78)], 3.5, 4.5)  # atlas

    air = _Solids(grid)
    air.ball((7, 20, -44), (7.5, 12, 7.5))  # sphenoid sinus
    air.ball((7, 46, -37), (6, 17, 9))  # ethmoid cells
    air.ball((7, 55, -60), (3.2, 24, 15))  # nasal cavity
    air.ball((30, 46, -64), (12, 14, 14))  # maxillary sinuses
    air.ball((9, 77, -18), (8, 3.5, 7))  # frontal sinuses
    air.rod([(0, 12, -66), (0, 2, -78), (0, -8, -100), (0, -12, -125), (0, -14, -156)], 7.0, 5.5, 5.0)  # pharynx
    air.ball((56, -36, -46), (9, 10, 12))  # mastoid cells
    air.rod([(48, -24, -44), (86, -24, -48)], 3.2, 3.2)  # ear canals
    air.ball((0, 46, -92), (20, 24, 1.8))  # between tongue and palate

    fat = _Solids(grid)
    fat.ball((30, 46, -36), (15, 26, 15))  # orbits
    fat.ball((46, 44, -84), (9, 16, 15))  # cheeks
    fat.ball((0, -92, -120), (16, 18, 40))  # nape
    fat.ball((36, 0, -92), (7, 12, 22))

    fluid = _Solids(grid)
    fluid.ball((32, 60, -36), (12.0, 12.0, 12.0))  # vitreous
    fluid.rod([(0, -46, -68), (0, -52, -92), (0, -54, -120), (0, -57, -156)], 10.0, 8.5)  # spinal canal
    fluid.ball((0, -2, -24), (14, 10, 5))  # suprasellar cistern

    nerve = _Solids(grid)
    nerve.rod([(0, -47, -68), (0, -53, -92), (0, -55, -120), (0, -58, -156)], 6.5, 5.2)  # spinal cord
    nerve.rod([(30, 49, -36), (22, 32, -33), (12, 16, -24), (0, 3, -19)], 2.0, 2.0)  # optic nerves and chiasm
    for dx, dz in ((9.5, 0.0), (-9.5, 0.0), (0.0, 9.5), (0.0, -9.5)):
        nerve.rod([(32 + dx, 58, -36 + dz), (30 + 0.9 * dx, 46, -36 + 0.9 * dz), (20, 22, -31)], 1.6, 2.2, 1.4)
    nerve.ball((32, 70, -36), (5.0, 2.4, 5.0))  # lenses

    bright = _Solids(grid)
    bright.ball((0, 3, -33), (6.2, 4.6, 3.2), False)  # pituitary gland and its stalk
    bright.rod([(0, 2, -30), (0, -1, -19)], 1.3, 1.0)
    bright.ball((12, 2, -35), (4, 10, 6.5))  # cavernous sinuses
    bright.ball((23, -38, 8), (3.5, 7, 4))  # choroid plexus
    bright.ball((2, -2, 9), (1.2, 6, 1.2))
    bright.rod([(0, -48, 10), (0, -68, -4), (0, -92, -19)], 1.8, 2.6)  # straight sinus
    bright.rod(
        [(0, -99, -20), (28, -94, -23), (50, -74, -28), (57, -52, -34), (46, -42, -52), (30, -34, -64)], 3.8, 3.4
    )
    bright.rod([(8, 50, -52), (8, 66, -54)], 2.6, 2.2)  # turbinates
    bright.rod([(8, 38, -62), (8, 70, -64)], 3.2, 2.6)
    bright.rod([(9, 34, -71), (9, 72, -72)], 3.2, 2.8)
    bright.rod([(0, -14, -44), (0, -13, -30), (0, -9, -22)], 1.5, 1.5)  # basilar artery
    bright.rod([(12, 0, -24), (22, 2, -20), (38, 4, -17)], 1.6, 1.2)  # middle cerebral arteries
    bright.rod([(4, 10, -16), (1.5, 26, -8), (1.5, 36, 8), (1.5, 30, 24), (1.5, 8, 34)], 1.2, 0.9)  # anterior
    bright.rod([(6, -14, -19), (18, -24, -14), (16, -42, 0)], 1.4, 1.0)  # posterior
    bright.rod([(1.5, 0, 14), (1.5, -30, 14), (1.5, -44, 6), (0, -50, 10)], 0.8, 1.4)  # internal cerebral veins
    sagittal = np.maximum(np.abs(x) - 4.2 * (1 + dura / 7.5), dura - 0.8)
    bright.field = np.minimum(bright.field, np.where((z > 8) | ((y < -70) & (z > -20)), sagittal, REACH))

    inside_skull = dura - 0.5  # nothing of the face reaches into the skull
    facial = np.maximum(bone.field, -inside_skull)
    fields = [dura, skin, facial, np.maximum(air.field, -(dura - 3)), np.maximum(fat.field, -(dura - 3)),
              fluid.field, nerve.field, bright.field]  # fmt: skip
    return np.stack([np.broadcast_to(f, skin.shape) for f in fields]).astype(np.float32)


def _skin(vault: Array, grid: Sequence[Array]) -> Array:
    """Signed distance to the outside of the head: skull vault plus scalp, joined with face, jaw, neck and ears."""
    x, y, z = grid
    temple = np.exp(-(((y - 28) / 34) ** 2) - ((z + 14) / 26) ** 2) * np.clip(np.abs(x) / 40 - 0.6, 0, 1)
    skin = vault - (13.5 + 9 * temple)
    skin = smooth_min(skin, ellipsoid(grid, (0, 30, -68), (66, 58, 58)), 16)
    skin = smooth_min(skin, ellipsoid(grid, (0, 42, -112), (50, 44, 30)), 18)
    skin = smooth_min(skin, capsule(grid, (0, -44, -60), (0, -44, -190), 64, 56), 20)
    skin = smooth_min(skin, capsule(grid, (0, 80, -38), (0, 94, -66), 8, 13), 12)
    skin = smooth_min(skin, ellipsoid(grid, (0, 84, -90), (22, 10, 12)), 8)
    for side in (-1, 1):
        skin = np.minimum(skin, ellipsoid(grid, (side * 86, -28, -42), (5, 13, 24)))
    return skin
