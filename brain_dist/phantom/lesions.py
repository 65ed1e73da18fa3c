"""The phantom's tumours: where each kind grows, and its shape in three dimensions.

A tumour is defined in MNI millimetres, so that all slices of a patient cut the same body. Shapes follow radiological
descriptions. A glioma is irregular and inside the brain, mostly with an enhancing ring around a necrotic core, and
oedema around both. A meningioma is attached to the dura, round, bright and homogeneous, has a dural tail and displaces
the brain. A pituitary adenoma is a midline mass that fills the sella and may extend upwards through its diaphragm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brain_dist.phantom.atlas import Atlas
from brain_dist.phantom.head import ellipsoid, smooth_min

Array = np.ndarray
SELLA = np.array([0.0, 3.0, -33.0])  # mm, centre of the normal pituitary gland


@dataclass(frozen=True)
class Lesion:
    """One tumour. Lengths in mm; signals relative to white matter.

    Attributes:
        kind: ``glioma``, ``meningioma`` or ``pituitary``.
        centre: [3] centre of the main body.
        radii: [3] radii of the main body along the columns of ``axes``.
        axes: [3, 3], orthonormal.
        irregularity: amplitude of the border's bumps, as a fraction of the radius.
        texture_offset: [3] shift into the texture cubes, voxels.
        signal: signal of the enhancing part.
        heterogeneity: strength of the texture inside.
        ring_width: width of the enhancing ring; 0: no ring.
        core_signal: signal inside the ring, or of the whole body if nothing enhances.
        enhances: whether the tumour takes up contrast agent.
        oedema_width: extent of the oedema beyond the body; 0: none.
        border_width: width over which the border fades.
        mass_effect: fraction of the tumour's volume by which it displaces brain.
        attachment: [3] point on the dura or falx that a meningioma grows from.
        falcine: whether a meningioma grows from the falx.
        suprasellar_radius: radius of the part of a pituitary adenoma above the diaphragm; 0: none.
    """

    kind: str
    centre: Array
    radii: Array
    axes: Array
    irregularity: float
    texture_offset: Array
    signal: float
    heterogeneity: float
    border_width: float
    mass_effect: float
    ring_width: float = 0.0
    core_signal: float = 0.0
    enhances: bool = True
    oedema_width: float = 0.0
    attachment: Array | None = None
    falcine: bool = False
    suprasellar_radius: float = 0.0

    @property
    def radius(self) -> float:
        """Mean radius, mm."""
        return float(np.prod(self.radii) ** (1 / 3))


def draw_lesion(kind: str, atlas: Atlas, rng: np.random.Generator) -> Lesion:
    """Draw a tumour of ``kind``."""
    return {"glioma": _glioma, "meningioma": _meningioma, "pituitary": _pituitary}[kind](atlas, rng)


# The order of the draws decides the pixels of every phantom: a new draw belongs at the end.


def _glioma(atlas: Atlas, rng: np.random.Generator) -> Lesion:
    radius = rng.uniform(19, 31)
    depth = -atlas.distance("dura", atlas.white_matter.T)
    candidates = atlas.white_matter[depth > min(0.75 * radius + 3, np.quantile(depth, 0.9))]
    centre = candidates[rng.integers(len(candidates))] + rng.uniform(-1, 1, 3)
    ring = rng.random() < 0.85
    enhances = ring or rng.random() < 0.6  # the others are low-grade: dark and homogeneous
    radii = radius * np.exp(rng.normal(0, 0.18, 3))
    axes, r = np.linalg.qr(rng.standard_normal((3, 3)))
    return Lesion(
        kind="glioma",
        centre=centre,
        radii=radii,
        axes=axes * np.sign(np.diag(r)),
        irregularity=rng.uniform(0.15, 0.4),
        texture_offset=rng.uniform(0, 64, 3),
        signal=rng.uniform(1.9, 2.5),
        heterogeneity=rng.uniform(0.15, 0.45),
        ring_width=rng.uniform(4.0, 0.35 * radius + 3.0) if ring else 0.0,
        core_signal=rng.uniform(0.35, 0.65) if ring else rng.uniform(0.4, 0.62),
        enhances=enhances,
        oedema_width=rng.uniform(7, 18) if enhances else rng.uniform(0, 6),
        border_width=rng.uniform(1.5, 4.0),
        mass_effect=rng.uniform(0.15, 0.6),
    )


def _meningioma(atlas: Atlas, rng: np.random.Generator) -> Lesion:
    radius = rng.uniform(13, 28)
    falcine = bool(rng.random() < 0.2)
    attachment, normal = _falx_site(atlas, rng) if falcine else _dura_site(atlas, rng)
    centre = attachment + normal * radius * rng.uniform(0.5, 0.85)
    side = np.cross(normal, rng.standard_normal(3))
    side /= np.linalg.norm(side)
    return Lesion(
        kind="meningioma",
        centre=centre,
        radii=radius * np.array([rng.uniform(0.8, 1.0), rng.uniform(0.95, 1.2), rng.uniform(0.95, 1.2)]),
        axes=np.stack([normal, side, np.cross(normal, side)], -1),
        irregularity=rng.uniform(0.04, 0.16),
        texture_offset=rng.uniform(0, 64, 3),
        signal=rng.uniform(1.7, 2.4),
        heterogeneity=rng.uniform(0.04, 0.18),
        oedema_width=rng.uniform(3, 12) if rng.random() < 0.35 else 0.0,
        border_width=rng.uniform(1.0, 2.2),
        mass_effect=rng.uniform(0.55, 0.95),
        attachment=attachment,
        falcine=falcine,
    )


def _falx_site(atlas: Atlas, rng: np.random.Generator) -> tuple[Array, Array]:
    """A random point of the falx, by rejection sampling, and the direction to one of its sides."""
    while True:
        y, z = rng.uniform(-80, 60), rng.uniform(0, 68)
        point = np.array([0.0, y, z])
        if on_falx(y, z) and atlas.distance("dura", point.reshape(3, 1))[0] < -6:
            return point, np.array([rng.choice([-1.0, 1.0]), 0.0, 0.0])


def _dura_site(atlas: Atlas, rng: np.random.Generator) -> tuple[Array, Array]:
    """A random point of the dura and its inward normal; the skull base, a frequent site, is drawn more often."""
    sites = np.flatnonzero(atlas.dura_points[:, 2] > -44)
    skull_base = sites[atlas.dura_points[sites, 2] < -8]
    index = rng.choice(skull_base if rng.random() < 0.4 else sites)
    return atlas.dura_points[index].astype(float), atlas.dura_normals[index].astype(float)


def _pituitary(atlas: Atlas, rng: np.random.Generator) -> Lesion:
    radius = rng.uniform(8, 16.5)
    # small adenomas fill the sella; larger ones grow upwards, where nothing stops them
    centre = SELLA + np.array([rng.normal(0, 1.2), rng.normal(0.5, 1.2), 0.3 * (radius - 5) + rng.normal(0, 0.8)])
    return Lesion(
        kind="pituitary",
        centre=centre,
        radii=radius * np.array([rng.uniform(0.95, 1.25), rng.uniform(0.85, 1.05), rng.uniform(0.85, 1.1)]),
        axes=np.eye(3),
        irregularity=rng.uniform(0.06, 0.2),
        texture_offset=rng.uniform(0, 64, 3),
        signal=rng.uniform(1.4, 2.1),
        heterogeneity=rng.uniform(0.08, 0.3),
        border_width=rng.uniform(1.0, 2.5),
        mass_effect=rng.uniform(0.6, 0.95),
        suprasellar_radius=radius * rng.uniform(0.6, 0.95) if radius > 9 and rng.random() < 0.6 else 0.0,
    )


def on_falx(y: Array | float, z: Array | float) -> Array:
    """Whether a point (mm) of the midline belongs to the falx: above the corpus callosum and the tentorium."""
    y, z = np.asarray(y), np.asarray(z)
    outside_callosum = ((y + 4) / 50) ** 2 + ((z - 2) / 37) ** 2 > 1
    return outside_callosum & (z > np.where(y < -40, -8 - 0.55 * (y + 40) - 22, -14))


def lesion_distance(lesion: Lesion, points: Array, dura: Array, bumps: Array) -> Array:
    """Signed distance (mm, negative inside) to the tumour's border.

    Args:
        lesion: the tumour.
        points: [3, …], mm.
        dura: […] signed distance to the dura at ``points``, mm.
        bumps: […] texture at ``points``, mean 0 and standard deviation 1.
    """
    shift = points - lesion.centre.astype(np.float32).reshape(3, *[1] * (points.ndim - 1))
    local = [sum(lesion.axes[i, k] * shift[i] for i in range(3)) for k in range(3)]
    body = ellipsoid(local, (0, 0, 0), tuple(lesion.radii)) + lesion.irregularity * lesion.radius * 0.7 * bumps
    if lesion.kind == "glioma":
        return np.maximum(body, dura + 3.0)  # cortex and fluid remain between it and the dura
    if lesion.kind == "meningioma":
        body = np.maximum(body, dura)
        if lesion.falcine:  # it stays on its side of the falx
            body = np.maximum(body, 0.4 - np.sign(lesion.centre[0]) * points[0])
        return body
    if radius := lesion.suprasellar_radius:
        top = (0.0, 0.0, float(lesion.radii[2] + 0.4 * radius))
        suprasellar = ellipsoid(list(shift), top, (1.15 * radius, 0.95 * radius, 0.9 * radius))
        body = smooth_min(body, suprasellar + lesion.irregularity * radius * bumps, 2.5)
    return body


def undisplaced(lesion: Lesion, points: Array, dura: Array) -> Array:
    """Where the brain at ``points`` [3, …] (mm) was before the tumour displaced it.

    A ball of volume V that grows in an incompressible medium moves what was at radius a to (a³ + V')^(1/3). This is the
    inverse, limited near the skull, which does not yield, and faded out over four radii.
    """
    shift = points - lesion.centre.astype(np.float32).reshape(3, *[1] * (points.ndim - 1))
    distance = np.sqrt((shift**2).sum(0)) + 1e-3
    growth = lesion.mass_effect * lesion.radius**3
    original = np.cbrt(np.maximum(distance**3 - growth, (0.25 * distance) ** 3))
    fade = np.clip(1.6 - distance / (2.8 * lesion.radius), 0, 1) * np.clip(-dura / 9, 0, 1)
    return points - shift * (fade * (1 - original / distance))
