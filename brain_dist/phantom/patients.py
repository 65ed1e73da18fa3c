"""A made-up person: the draws that all slices of one phantom patient share.

Pure functions of (seed, patient number): every draw comes from a generator seeded by those numbers and the purpose of
the draw. Nothing but the lesion depends on the class: anatomy and scanner come from streams that do not know it, and a
person without a tumour is looked at where one could have been, so that nothing else in a picture tells the class.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from brain_dist.phantom.anatomy import HIGH, LOW, NOISE_SIDE, load_atlas
from brain_dist.phantom.lesions import Lesion, draw_lesion

Array = np.ndarray
CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
KNOTS = 9.0  # mm between the knots of the elastic deformation
# Textures of a slice: which cube (0 fine, 1 coarse) and mm a voxel along x, y, z. Fibres run along the neck.
TEXTURES = {
    "fine": (0, (1.7, 1.7, 1.7)), "other": (0, (2.6, 2.6, 2.6)), "coarse": (1, (2.2, 2.2, 2.2)),
    "wide": (1, (6.0, 6.0, 6.0)), "fibres": (0, (1.5, 2.6, 5.0)), "patches": (1, (4.0, 4.0, 6.0)),
}  # fmt: skip


@dataclass(frozen=True)
class Scanner:
    """How a patient was scanned. ``fov`` mm; ``voxel`` mm, acquired; ``noise`` relative to white matter."""

    fov: float
    voxel: float
    noise: float
    top: float  # grey value of fat, 1 is full white
    gamma: float
    bias: Array  # coefficients of the log bias field's polynomial
    rim: float  # extra brightness near the receive coils
    fall: tuple[float, float]  # height (mm) and width (mm) of the coil's end below the head


@dataclass(frozen=True)
class Patient:
    """Everything about one made-up person that several slices share."""

    seed: int
    number: int
    label: str
    affine: Array  # 3 x 3, scanner directions → MNI directions
    shift: Array  # mm
    warp: Array = field(repr=False)  # [3, knots…] spline coefficients of the elastic displacement, mm
    curve: tuple[Array, Array]  # template grey value → signal relative to white matter
    tissue: dict[str, float]  # signals relative to white matter, thicknesses in mm
    scanner: Scanner
    target: Lesion  # where the slices are taken
    textures: dict[str, Array]  # shifts into the texture cubes

    @property
    def name(self) -> str:
        return f"P{self.number + 1:04d}"

    @property
    def lesion(self) -> Lesion | None:
        return None if self.label == "notumor" else self.target


def patient(seed: int, number: int) -> Patient:
    """Draw patient ``number`` (from 0). Each four consecutive patients hold one of each class, in random order."""
    block = np.random.default_rng([seed, 1, number // 4]).permutation(4)
    label = CLASSES[block[number % 4]]
    atlas = load_atlas()
    rng = np.random.default_rng([seed, 2, number])
    angles = np.deg2rad(rng.normal(0, 5, 3).clip(-11, 11))
    affine = _turn(angles) @ (
        np.diag(rng.normal(1.0, 0.045, 3).clip(0.9, 1.1)) + np.triu(rng.normal(0, 0.025, (3, 3)), 1)
    )
    knots = np.ceil((HIGH - LOW) / KNOTS).astype(int) + 1
    warp = np.stack([_smooth(rng, knots, 4.0, rng.uniform(1.5, 3.5)) + _smooth(rng, knots, 1.2, rng.uniform(0.3, 0.7))
                     for _ in range(3)])  # fmt: skip
    grey, fluid = rng.uniform(0.76, 0.9), rng.uniform(0.25, 0.42)
    curve = (np.array([0, 70, 110, 165, 205, 230, 255.0]),
             np.array([fluid, fluid, fluid + 0.35 * (grey - fluid), grey, 0.35 * grey + 0.65, 1.0, 1.04]))  # fmt: skip
    tissue = {
        "fat": rng.uniform(1.7, 2.8), "marrow": rng.uniform(0.3, 1.4), "muscle": rng.uniform(0.6, 0.85), "fluid": fluid,
        "mucosa": rng.uniform(1.2, 1.9), "vessel": rng.uniform(1.2, 1.8), "dura": rng.uniform(0.4, 1.2),
        "skull": rng.uniform(5.0, 8.0), "scalp": rng.uniform(2.5, 6.0),
        "veins": rng.uniform(0.06, 0.16), "gyri": rng.uniform(0.6, 1.6),
    }  # fmt: skip
    scan = np.random.default_rng([seed, 3, number])
    scanner = Scanner(
        fov=scan.uniform(205, 250), voxel=scan.uniform(0.95, 1.6),
        noise=float(np.exp(scan.uniform(np.log(0.008), np.log(0.05)))), top=scan.uniform(0.7, 1.15),
        gamma=scan.uniform(0.85, 1.2), bias=scan.normal(0, 0.09, 9), rim=scan.uniform(0, 0.35),
        fall=(scan.uniform(-150, -95), scan.uniform(8, 22)),
    )  # fmt: skip
    place = np.random.default_rng([seed, 4, number])
    decoy = str(place.choice(["glioma", "meningioma", "pituitary"]))
    target = draw_lesion(decoy if label == "notumor" else label, atlas, place)
    return Patient(seed, number, label, affine, rng.normal(0, 3, 3), warp, curve, tissue, scanner, target,
                   {name: rng.uniform(0, NOISE_SIDE, 3) for name in TEXTURES})  # fmt: skip


def _turn(angles: Array) -> Array:
    """Rotation matrix from three Euler angles (radians)."""
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        step = np.eye(3)
        step[i, i] = step[j, j] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    return turn


def _smooth(rng: np.random.Generator, shape: Array, sigma: float, amplitude: float) -> Array:
    """Cubic spline coefficients of a smooth random field with standard deviation ``amplitude``."""
    values = ndimage.gaussian_filter(rng.standard_normal(shape), sigma)
    return ndimage.spline_filter((values * (amplitude / values.std())).astype(np.float32), 3, output=np.float32)
