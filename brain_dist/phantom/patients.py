"""A phantom patient: the random draws that all slices of the patient share.

These are pure functions of (seed, patient number): each purpose has a random generator that is seeded by those numbers.
Only the tumour depends on the class. Anatomy and scanner are drawn from generators that do not, and the slices of a
patient without a tumour are taken where one could have been, so that nothing else in an image reveals the class.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from brain_dist.collection.recipes import CLASSES
from brain_dist.phantom.atlas import TEXTURE_SIZE, load_atlas
from brain_dist.phantom.head import GRID_MAX, GRID_MIN
from brain_dist.phantom.lesions import Lesion, draw_lesion

Array = np.ndarray
KNOT_SPACING = 9.0  # mm between the knots of the elastic deformation
# Textures of a slice: their cube (0 fine, 1 coarse) and voxel size (mm) along x, y, z. Fibres run along the neck.
TEXTURES = {
    "fine": (0, (1.7, 1.7, 1.7)), "other": (0, (2.6, 2.6, 2.6)), "coarse": (1, (2.2, 2.2, 2.2)),
    "wide": (1, (6.0, 6.0, 6.0)), "fibres": (0, (1.5, 2.6, 5.0)), "patches": (1, (4.0, 4.0, 6.0)),
}  # fmt: skip
_INTENSITIES = np.array([0, 70, 110, 165, 205, 230, 255.0])  # of the template, with a signal each
# Ranges of a head's signals relative to white matter, of the thickness of skull and scalp (mm), of the width of
# cortical veins (in units of the texture), and of the amplitude of the brain's local displacement (gyri, mm)
_TISSUE = {
    "fat": (1.7, 2.8), "marrow": (0.3, 1.4), "muscle": (0.6, 0.85), "mucosa": (1.2, 1.9), "vessel": (1.2, 1.8),
    "dura": (0.4, 1.2), "skull": (5.0, 8.0), "scalp": (2.5, 6.0), "veins": (0.06, 0.16), "gyri": (0.6, 1.6),
}  # fmt: skip


@dataclass(frozen=True)
class Scanner:
    """How a patient was scanned.

    Attributes:
        fov: field of view, mm.
        voxel: acquired voxel size, mm.
        noise: standard deviation of the noise, relative to white matter.
        fat_level: gray level of fat; 1 is white.
        gamma: exponent of the display.
        bias: [9] coefficients of the log bias field's polynomial.
        coil_gain: additional signal near the receive coils.
        coil_end: height (mm) and width (mm) of the signal's decrease below the head, where the coil ends.
    """

    fov: float
    voxel: float
    noise: float
    fat_level: float
    gamma: float
    bias: Array
    coil_gain: float
    coil_end: tuple[float, float]


@dataclass(frozen=True)
class Patient:
    """Everything about one phantom patient that all slices share.

    Attributes:
        seed: seed of the collection.
        number: number of the patient, from 0.
        label: class.
        affine: [3, 3], scanner directions → MNI directions.
        shift: [3], mm.
        warp: float32 [3, knots…], spline coefficients of the elastic displacement, mm.
        intensity_curve: template intensities, and their signals relative to white matter.
        tissue: see ``_TISSUE``, and ``fluid``, the signal of cerebrospinal fluid.
        scanner: the scanner's settings.
        target: the tumour, or the site of the slices of a patient without one.
        texture_offsets: texture → [3] shift into its cube, voxels.
    """

    seed: int
    number: int
    label: str
    affine: Array
    shift: Array
    warp: Array = field(repr=False)
    intensity_curve: tuple[Array, Array]
    tissue: dict[str, float]
    scanner: Scanner
    target: Lesion
    texture_offsets: dict[str, Array]

    @property
    def name(self) -> str:
        """``P0001`` for patient number 0."""
        return f"P{self.number + 1:04d}"

    @property
    def lesion(self) -> Lesion | None:
        """The tumour, or None."""
        return None if self.label == "notumor" else self.target


def draw_patient(seed: int, number: int) -> Patient:
    """Draw patient ``number`` (from 0). Each four consecutive patients have the four classes, in random order."""
    label = CLASSES[np.random.default_rng([seed, 1, number // 4]).permutation(4)[number % 4]]
    target_rng = np.random.default_rng([seed, 4, number])
    kind = str(target_rng.choice(["glioma", "meningioma", "pituitary"]))  # gives the slices' site if there is no tumour
    # The order of the draws decides the pixels of every phantom: a new draw belongs at the end.
    rng = np.random.default_rng([seed, 2, number])
    affine, warp = _draw_affine(rng), _draw_warp(rng)
    grey, fluid = rng.uniform(0.76, 0.9), rng.uniform(0.25, 0.42)
    signals = np.array([fluid, fluid, fluid + 0.35 * (grey - fluid), grey, 0.35 * grey + 0.65, 1.0, 1.04])
    return Patient(
        seed=seed,
        number=number,
        label=label,
        affine=affine,
        warp=warp,
        intensity_curve=(_INTENSITIES, signals),
        tissue={"fluid": fluid, **{name: rng.uniform(*limits) for name, limits in _TISSUE.items()}},
        shift=rng.normal(0, 3, 3),
        scanner=_draw_scanner(np.random.default_rng([seed, 3, number])),
        target=draw_lesion(kind if label == "notumor" else label, load_atlas(), target_rng),
        texture_offsets={name: rng.uniform(0, TEXTURE_SIZE, 3) for name in TEXTURES},
    )


def _draw_affine(rng: np.random.Generator) -> Array:
    """Rotation, scaling and shear [3, 3]."""
    rotation = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(rng.normal(0, 5, 3).clip(-11, 11))):
        i, j = [k for k in range(3) if k != axis]
        step = np.eye(3)
        step[i, i] = step[j, j] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ step
    scaling = np.diag(rng.normal(1.0, 0.045, 3).clip(0.9, 1.1))
    return rotation @ (scaling + np.triu(rng.normal(0, 0.025, (3, 3)), 1))


def _draw_warp(rng: np.random.Generator) -> Array:
    """Cubic spline coefficients [3, knots…] of the elastic displacement (mm): a wide field plus a narrow one."""
    knots = np.ceil((GRID_MAX - GRID_MIN) / KNOT_SPACING).astype(int) + 1

    def smooth_field(sigma: float, amplitude: float) -> Array:
        """A smooth random field with standard deviation ``amplitude``."""
        values = ndimage.gaussian_filter(rng.standard_normal(knots), sigma)
        return ndimage.spline_filter((values * (amplitude / values.std())).astype(np.float32), 3, output=np.float32)

    return np.stack([
        smooth_field(4.0, rng.uniform(1.5, 3.5)) + smooth_field(1.2, rng.uniform(0.3, 0.7)) for _ in range(3)
    ])  # fmt: skip


def _draw_scanner(rng: np.random.Generator) -> Scanner:
    return Scanner(
        fov=rng.uniform(205, 250),
        voxel=rng.uniform(0.95, 1.6),
        noise=float(np.exp(rng.uniform(np.log(0.008), np.log(0.05)))),
        fat_level=rng.uniform(0.7, 1.15),
        gamma=rng.uniform(0.85, 1.2),
        bias=rng.normal(0, 0.09, 9),
        coil_gain=rng.uniform(0, 0.35),
        coil_end=(rng.uniform(-150, -95), rng.uniform(8, 22)),
    )
