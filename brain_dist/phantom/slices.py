"""Slices of a phantom patient: pure functions of (patient, slice number).

A slice is sampled from the undeformed anatomy: the scanner coordinates of its pixels are mapped through the patient's
affine and elastic deformation to MNI coordinates, where the atlas and the tumour are defined. No volume is deformed.
The scanner then adds its coil profile, a finite matrix in k-space, Rician noise, and the display.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage

from brain_dist.phantom.atlas import Atlas, load_atlas
from brain_dist.phantom.head import GRID_MIN, coverage
from brain_dist.phantom.lesions import lesion_distance, undisplaced
from brain_dist.phantom.patients import KNOT_SPACING, Patient, Scanner
from brain_dist.phantom.signal import add_lesion, gyral_displacement, head_signal, resize, sample_texture, slice_maps

Array = np.ndarray
# Plane → directions of the columns (to the right) and rows (downwards), and the normal, in radiological display
_DIRECTIONS = {
    "axial": ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "coronal": ((-1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "sagittal": ((0, -1, 0), (0, 0, -1), (1, 0, 0)),
}
PLANES = tuple(_DIRECTIONS)
_CENTRE_Z = {"axial": 0.0, "coronal": -6.0, "sagittal": -14.0}  # mm, height of the field of view's centre
_COARSE_PIXEL = 2.2  # mm between the points at which distances and textures are sampled
_MIN_PIXELS = 128  # smaller slices are computed with more pixels, and reduced as a scanner does
_MIN_AREA = 90  # mm², of the tumour in a slice


class Slice(NamedTuple):
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
    original = points if tumour is None else undisplaced(tumour, points, maps["dura"])
    original = original + gyral_displacement(patient, maps)
    index = original - atlas.t1_origin.astype(np.float32).reshape(3, 1, 1)
    brain = ndimage.map_coordinates(atlas.t1, index, np.float32, order=1, mode="constant", prefilter=False)
    image = head_signal(patient, points, maps, brain, pixel, plane)
    mask = np.zeros(image.shape, bool)
    if tumour is not None:
        white_matter = np.clip((brain - 165) / 50, 0, 1)
        mask = add_lesion(tumour, image, points, maps, white_matter, pixel)
    image *= coverage(maps["skin"], pixel)
    mask = mask.reshape(size, fine_size // size, size, -1).mean((1, 3)) >= 0.5
    return Slice(_acquire(patient, image, points, maps["skin"], size, rng), mask, _truth(patient, plane, mask))


def _place_slice(atlas: Atlas, patient: Patient, plane: str, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Points (MNI mm) of a slice that cuts the target, and the distance to the dura and the bumps texture there."""
    right, down, normal = (np.array(direction, float) for direction in _DIRECTIONS[plane])
    angle = np.deg2rad(rng.normal(0, 3))
    right, down = np.cos(angle) * right + np.sin(angle) * down, np.cos(angle) * down - np.sin(angle) * right
    middle = np.array([0.0, -8.0, _CENTRE_Z[plane]]) + rng.normal(0, 4, 3)
    target, fov = patient.target, patient.scanner.fov
    offset = rng.uniform(-0.55, 0.55) * target.radius
    nodes = int(fov / _COARSE_PIXEL) + 2
    while True:
        on_slice = (target.centre + offset * normal).reshape(3, 1)  # MNI mm
        undeformed = on_slice
        for _ in range(4):  # invert the displacement: it is smooth and small, so this fixed point converges at once
            undeformed = on_slice - _elastic(patient, undeformed)
        scanner_point = np.linalg.solve(patient.affine, undeformed[:, 0] - patient.shift)
        centre = middle + normal * float(normal @ (scanner_point - middle))
        points = _slice_points(patient, right, down, centre, nodes)
        dura = atlas.distance("dura", points)
        bumps = sample_texture(atlas, 1, points, target.texture_offset, (2.0, 2.0, 2.0))
        area = (lesion_distance(target, points, dura, bumps) < 0).sum() * (fov / (nodes - 1)) ** 2
        if area > _MIN_AREA or abs(offset) < 0.2:
            return points, dura, bumps
        offset *= 0.5  # the slice misses the target's irregular border: move towards its centre


def _slice_points(patient: Patient, right: Array, down: Array, centre: Array, size: int) -> Array:
    """MNI coordinates (mm) of ``size`` x ``size`` points over the field of view, float32 [3, rows, columns].

    ``right`` and ``down`` [3] are the directions of columns and rows in scanner coordinates, ``centre`` [3] (mm) is the
    middle of the slice. The deformation is smooth: it is computed on every third point and interpolated.
    """
    t = np.linspace(-0.5, 0.5, size // 3 + 2) * patient.scanner.fov
    right, down, middle = (patient.affine @ v for v in (right, down, centre))
    affine = (middle + patient.shift).reshape(3, 1, 1) + right.reshape(3, 1, 1) * t + down.reshape(3, 1, 1) * t[:, None]
    return resize((affine + _elastic(patient, affine)).astype(np.float32), size)


def _elastic(patient: Patient, points: Array) -> Array:
    """Elastic displacement (mm) at ``points`` [3, …]."""
    index = (points - GRID_MIN.reshape(3, *[1] * (points.ndim - 1))) / KNOT_SPACING
    return np.stack([
        ndimage.map_coordinates(component, index, np.float32, order=3, mode="nearest", prefilter=False)
        for component in patient.warp
    ])  # fmt: skip


def _acquire(patient: Patient, image: Array, points: Array, skin: Array, size: int, rng: np.random.Generator) -> Array:
    """Simulate the scan of a slice.

    Args:
        patient: whose scanner settings are used.
        image: float32 [N, N], signal relative to white matter, N ≥ ``size``.
        points: [3, N, N], MNI mm.
        skin: [N, N], signed distance to the skin, mm.
        size: pixels per side of the result.
        rng: draws the noise.

    Returns:
        uint8 [size, size].
    """
    scanner = patient.scanner
    x, y, z = points / np.float32(90)
    terms = (x, y, z, x * y, y * z, x * z, x * x, y * y, z * z)
    bias = sum(np.float32(coefficient) * term for coefficient, term in zip(scanner.bias, terms, strict=True))
    signal = image * np.exp(bias) * (1 + scanner.coil_gain * np.exp(np.minimum(skin, 0) / 22))
    height, width = scanner.coil_end
    signal /= 1 + np.exp(np.clip((height - points[2]) / width, -30, 30))
    # scanners scale to the brightest tissue, which is fat
    white = scanner.fat_level / patient.tissue["fat"] / (1 + scanner.coil_gain)
    gray = np.clip(white * _measure(scanner, signal, size, rng), 0, 1) ** scanner.gamma
    return np.rint(255 * gray).astype(np.uint8)


def _measure(scanner: Scanner, signal: Array, size: int, rng: np.random.Generator) -> Array:
    """Magnitude image [size, size]: only frequencies up to 1 / (2 voxel) are measured, each with complex noise."""
    kspace = fft.fftshift(fft.fft2(signal.astype(np.complex64), norm="forward"))
    start = (len(kspace) - size) // 2
    kspace = kspace[start : start + size, start : start + size]
    measured = min(1.0, scanner.fov / size / scanner.voxel)  # fraction of the frequencies of ``size`` pixels
    noise = rng.standard_normal((2, size, size), dtype=np.float32) * np.float32(scanner.noise / size / measured)
    frequency = np.abs(fft.fftshift(fft.fftfreq(size))) * 2 / measured
    taper = np.cos(np.clip((frequency - 0.7) / 0.3, 0, 1) * np.pi / 2).astype(np.float32)
    kspace = (kspace + noise[0] + 1j * noise[1]) * taper * taper[:, None]
    return np.abs(fft.ifft2(fft.ifftshift(kspace), norm="forward"))


def _truth(patient: Patient, plane: str, mask: Array) -> dict[str, str | float]:
    """The slice's row of ``truth.csv``: plane, tumour, scanner. The tumour's columns are empty if there is none."""
    scanner, target = patient.scanner, patient.target
    place = {f"mni_{axis}": round(float(value), 2) for axis, value in zip("xyz", target.centre, strict=True)}
    tumour = {**_bounding_box(mask), "area": int(mask.sum()), **place, "radius_mm": round(target.radius, 2)}
    return {
        "plane": plane,
        **(tumour if patient.lesion is not None else dict.fromkeys(tumour, "")),
        "fov_mm": round(scanner.fov, 2),
        "voxel_mm": round(scanner.voxel, 3),
        "noise": round(scanner.noise, 4),
        "top": round(scanner.fat_level, 3),
        "gamma": round(scanner.gamma, 3),
    }


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
