"""Slices of a phantom patient: pure functions of (patient, slice number).

A slice is sampled from the undeformed anatomy: the scanner coordinates of its pixels are mapped through the patient's
affine and elastic deformation to MNI coordinates, where the atlas and the tumour are defined. No volume is deformed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from brain_dist.phantom.acquisition import acquire
from brain_dist.phantom.atlas import Atlas, load_atlas
from brain_dist.phantom.geometry import draw_orientation, resize, slice_centre, slice_points
from brain_dist.phantom.lesion_signal import add_lesion
from brain_dist.phantom.lesions import lesion_distance, undisplaced
from brain_dist.phantom.patients import Patient
from brain_dist.phantom.settings import PLANES
from brain_dist.phantom.solids import coverage
from brain_dist.phantom.tissue import HeadPainter, gyral_displacement, sample_texture, slice_maps

Array = np.ndarray
_COARSE_PIXEL = 2.2  # mm between the points at which distances and textures are sampled
_MIN_PIXELS = 128  # smaller slices are computed with more pixels, and reduced as a scanner does
_MIN_AREA = 90  # mm², of the tumour in a slice


@dataclass(frozen=True)
class Slice:
    """A rendered slice.

    Attributes:
        image: uint8 [size, size].
        mask: bool [size, size], the tumour.
        truth: what was drawn, the slice's columns in ``truth.csv``.
    """

    image: Array
    mask: Array
    truth: dict[str, str | float]


def render(patient: Patient, number: int, size: int, planes: Sequence[str] = PLANES, lesion: bool = True) -> Slice:
    """Render a slice.

    Args:
        patient: whose slice.
        number: number of the slice; each has another position and orientation.
        size: pixels per side.
        planes: one of these is drawn.
        lesion: False renders the slice as it would be without the tumour.
    """
    atlas = load_atlas()
    rng = np.random.default_rng([patient.seed, 5, patient.number, number])
    plane = planes[int(rng.integers(len(planes)))]
    points, dura, bumps = _place_slice(atlas, patient, plane, rng)

    fine_size = size * -(-_MIN_PIXELS // size)
    pixel = max(1.0, patient.scanner.fov / fine_size)
    maps = slice_maps(atlas, patient, points, dura, fine_size)
    maps["bumps"] = resize(bumps, fine_size)
    points = resize(points, fine_size)
    tumour = patient.lesion if lesion else None
    brain = _sample_brain(atlas, patient, points, maps, displaced=tumour is not None)
    image = HeadPainter(patient, points, maps, pixel).paint(brain, plane)
    mask = np.zeros(image.shape, bool)
    if tumour is not None:
        white_matter = np.clip((brain - 165) / 50, 0, 1)
        mask = add_lesion(tumour, image, points, maps, white_matter, pixel)
    image *= coverage(maps["skin"], pixel)
    mask = mask.reshape(size, fine_size // size, size, -1).mean((1, 3)) >= 0.5
    return Slice(acquire(patient, image, points, maps["skin"], size, rng), mask, _truth(patient, plane, mask))


def _place_slice(atlas: Atlas, patient: Patient, plane: str, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Points (MNI mm) of a slice that cuts the target, and the distance to the dura and the bumps texture there."""
    orientation = draw_orientation(plane, rng)
    target, fov = patient.target, patient.scanner.fov
    offset = rng.uniform(-0.55, 0.55) * target.radius
    nodes = int(fov / _COARSE_PIXEL) + 2
    while True:
        centre = slice_centre(patient, orientation, target.centre + offset * orientation.normal)
        points = slice_points(patient, orientation, centre, nodes)
        dura = atlas.distance("dura", points)
        bumps = sample_texture(atlas, 1, points, target.texture_offset, (2.0, 2.0, 2.0))
        area = (lesion_distance(target, points, dura, bumps) < 0).sum() * (fov / (nodes - 1)) ** 2
        if area > _MIN_AREA or abs(offset) < 0.2:
            return points, dura, bumps
        offset *= 0.5  # the slice misses the target's irregular border: move towards its centre


def _sample_brain(atlas: Atlas, patient: Patient, points: Array, maps: dict[str, Array], displaced: bool) -> Array:
    """Template intensity [H, W] of the brain, displaced by the patient's gyri and optionally by the tumour."""
    original = undisplaced(patient.target, points, maps["dura"]) if displaced else points
    original = original + gyral_displacement(patient, maps)
    index = original - atlas.t1_origin.astype(np.float32).reshape(3, 1, 1)
    return ndimage.map_coordinates(atlas.t1, index, np.float32, order=1, mode="constant", prefilter=False)


def _truth(patient: Patient, plane: str, mask: Array) -> dict[str, str | float]:
    """The slice's row of ``truth.csv``: plane, tumour, scanner. The tumour's columns are empty if there is none."""
    scanner, target, has_lesion = patient.scanner, patient.target, patient.lesion is not None
    truth: dict[str, str | float] = {"plane": plane, **_bounding_box(mask)}
    truth["area"] = int(mask.sum()) if has_lesion else ""
    for axis, value in zip("xyz", target.centre, strict=True):
        truth[f"mni_{axis}"] = round(float(value), 2) if has_lesion else ""
    truth["radius_mm"] = round(target.radius, 2) if has_lesion else ""
    truth |= {
        "fov_mm": round(scanner.fov, 2),
        "voxel_mm": round(scanner.voxel, 3),
        "noise": round(scanner.noise, 4),
        "top": round(scanner.fat_level, 3),
        "gamma": round(scanner.gamma, 3),
    }
    return truth


def _bounding_box(mask: Array) -> dict[str, str | float]:
    """Centre and size (pixels) of a mask's bounding box; empty texts if the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return dict.fromkeys(("x", "y", "width", "height"), "")
    return {
        "x": (columns[0] + columns[-1]) / 2,
        "y": (rows[0] + rows[-1]) / 2,
        "width": int(columns[-1] - columns[0] + 1),
        "height": int(rows[-1] - rows[0] + 1),
    }
