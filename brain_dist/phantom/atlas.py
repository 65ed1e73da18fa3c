"""The anatomy that all phantom patients are deformed from: the MNI152 T1 brain in a synthetic head.

The template is brain-extracted, so everything outside the brain is synthetic (:mod:`brain_dist.phantom.head`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import nibabel
import numpy as np
from scipy import ndimage

from brain_dist.phantom.head import GRID_MAX, GRID_MIN, SPACING, head_distances

Array = np.ndarray
STRUCTURES = ("dura", "skin", "bone", "air", "fat", "fluid", "nerve", "enhancing")  # with distance fields
TEXTURE_SIZE = 64  # voxels, side of the periodic texture cubes


@dataclass(frozen=True)
class Atlas:
    """The undeformed anatomy, in MNI millimetres (x to the right, y to the front, z up).

    Attributes:
        t1: uint8 [X, Y, Z], T1 intensity of the brain at 1 mm.
        t1_origin: [3] position of voxel (0, 0, 0) of ``t1``.
        distances: structure → float32 [X, Y, Z], signed distance (mm, negative inside) at 2 mm from ``GRID_MIN``.
        textures: float32 [2, 64, 64, 64], a fine and a coarse periodic texture, mean 0 and standard deviation 1.
        white_matter: float32 [N, 3], points deep in white matter.
        dura_points: float32 [M, 3], points on the dura.
        dura_normals: float32 [M, 3], their unit normals, pointing into the skull.
    """

    t1: Array
    t1_origin: Array
    distances: dict[str, Array]
    textures: Array
    white_matter: Array
    dura_points: Array
    dura_normals: Array

    def distance(self, structure: str, points: Array) -> Array:
        """Signed distance (mm) to a structure at ``points`` [3, …] (mm)."""
        index = (points - GRID_MIN.reshape(3, *[1] * (points.ndim - 1))) / SPACING
        return ndimage.map_coordinates(self.distances[structure], index, order=1, mode="nearest", prefilter=False)


@lru_cache(maxsize=1)
def load_atlas() -> Atlas:
    """Read nilearn's MNI152 volumes and build the head around them (about two seconds, once per process)."""
    t1, origin = _template("t1")
    white_matter, _ = _template("wm")
    axes = [np.arange(a, b + 1, SPACING, dtype=np.float32) for a, b in zip(GRID_MIN, GRID_MAX, strict=True)]

    def on_grid(mask: Array) -> Array:
        """A 1 mm mask on the grid of the distance fields; False outside the mask's volume."""
        shape = tuple(len(axis) for axis in axes)
        return ndimage.affine_transform(mask, np.full(3, SPACING), GRID_MIN - origin, shape, order=0)

    distances = head_distances(on_grid(t1 > 0), axes)
    dura = distances["dura"]
    deep = np.argwhere(on_grid(white_matter > 150) & (dura < -12)) * SPACING + GRID_MIN
    border = np.argwhere(np.abs(dura) < 0.7 * SPACING)
    gradient = np.stack([ndimage.sobel(dura, axis)[tuple(border.T)] for axis in range(3)], -1)
    normals = -gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-6)
    # make the sulci visible again, which averaging many brains blurred
    sharp = t1 + 0.9 * (t1 - ndimage.gaussian_filter(t1.astype(np.float32), 1.6))
    return Atlas(
        t1=np.where(t1 == 0, 0, np.clip(sharp, 0, 255)).astype(np.uint8),
        t1_origin=origin,
        distances=distances,
        textures=_textures(),
        white_matter=deep.astype(np.float32),
        dura_points=(border * SPACING + GRID_MIN).astype(np.float32),
        dura_normals=normals.astype(np.float32),
    )


def _template(kind: str) -> tuple[Array, Array]:
    """One of nilearn's MNI152 volumes (uint8, 1 mm) and the position of its first voxel; nilearn's loaders are slow."""
    name = f"datasets/data/mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    with resources.as_file(resources.files("nilearn").joinpath(name)) as path:
        image = nibabel.Nifti1Image.from_filename(path)
        return np.asarray(image.dataobj), image.affine[:3, 3]


def _textures() -> Array:
    """Two periodic random textures, with blobs of about 2 and about 5 voxels."""
    rng = np.random.default_rng(20240229)
    cubes = []
    for sigma in (1.2, 2.6):
        cube = ndimage.gaussian_filter(rng.standard_normal([TEXTURE_SIZE] * 3), sigma, mode="wrap")
        cubes.append((cube - cube.mean()) / cube.std())
    return np.stack(cubes).astype(np.float32)
