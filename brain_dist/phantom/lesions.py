"""The phantom's lesions: where each kind grows, its shape in three dimensions, and what it does to a slice.

A lesion lives in MNI millimetres, so that every slice of its patient cuts the same body. Shapes follow what
radiology describes: a glioma is irregular and inside the brain, mostly with an enhancing ring around a necrotic core
and oedema around both; a meningioma sits on the dura, is round, bright and even, has a dural tail and pushes the brain
inwards; a pituitary adenoma is a midline mass that fills the sella and may bulge upwards through its diaphragm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brain_dist.phantom.anatomy import Atlas, ellipsoid, smooth_min

Array = np.ndarray
SELLA = np.array([0.0, 3.0, -33.0])  # mm, centre of the normal gland


@dataclass(frozen=True)
class Lesion:
    """One tumour. Lengths in mm; intensities relative to white matter.

    ``centre`` and ``radii`` describe the main body along the columns of ``axes`` (3 x 3, orthonormal); ``attachment``
    is the point on the dura or falx it grows from (meningioma only).
    """

    kind: str  # glioma, meningioma or pituitary
    centre: Array
    radii: Array
    axes: Array
    irregular: float  # amplitude of the border's bumps, as a fraction of the radius
    offset: Array  # shift into the texture cubes
    signal: float  # of the enhancing part
    uneven: float  # strength of the texture inside
    rim: float  # thickness of the enhancing ring; 0: no ring
    core: float  # signal inside the ring, or of the whole body where nothing enhances
    enhances: bool
    oedema: float  # reach beyond the body; 0: none
    blur: float  # width over which the border fades
    push: float  # share of the lesion's volume by which it displaces brain
    attachment: Array | None = None
    falx: bool = False
    upper: float = 0.0  # pituitary: radius of the part above the diaphragm; 0: none

    @property
    def radius(self) -> float:
        """Mean radius, mm."""
        return float(np.prod(self.radii) ** (1 / 3))


def draw_lesion(kind: str, atlas: Atlas, rng: np.random.Generator) -> Lesion:
    """Draw a lesion of ``kind``; the same draws serve as the place to look at in a patient without a tumour."""
    return {"glioma": _glioma, "meningioma": _meningioma, "pituitary": _pituitary}[kind](atlas, rng)


def _rotation(rng: np.random.Generator) -> Array:
    axes, upper = np.linalg.qr(rng.standard_normal((3, 3)))
    return axes * np.sign(np.diag(upper))


def _glioma(atlas: Atlas, rng: np.random.Generator) -> Lesion:
    radius = rng.uniform(19, 31)
    depth = -atlas.sample("dura", atlas.white.T)
    fits = atlas.white[depth > min(0.75 * radius + 3, np.quantile(depth, 0.9))]
    centre = fits[rng.integers(len(fits))] + rng.uniform(-1, 1, 3)
    ring = rng.random() < 0.85
    enhances = ring or rng.random() < 0.6  # the rest is low-grade: dark and even
    return Lesion(
        "glioma", centre, radius * np.exp(rng.normal(0, 0.18, 3)), _rotation(rng), irregular=rng.uniform(0.15, 0.4),
        offset=rng.uniform(0, 64, 3), signal=rng.uniform(1.9, 2.5), uneven=rng.uniform(0.15, 0.45),
        rim=rng.uniform(4.0, 0.35 * radius + 3.0) if ring else 0.0,
        core=rng.uniform(0.35, 0.65) if ring else rng.uniform(0.4, 0.62), enhances=enhances,
        oedema=rng.uniform(7, 18) if enhances else rng.uniform(0, 6),
        blur=rng.uniform(1.5, 4.0), push=rng.uniform(0.15, 0.6),
    )  # fmt: skip


def _meningioma(atlas: Atlas, rng: np.random.Generator) -> Lesion:
    radius = rng.uniform(13, 28)
    falx = rng.random() < 0.2
    if falx:
        while True:  # a point of the falx, found by trying
            y, z = rng.uniform(-80, 60), rng.uniform(0, 68)
            point = np.array([0.0, y, z])
            if on_falx(y, z) and atlas.sample("dura", point.reshape(3, 1))[0] < -6:
                break
        normal = np.array([rng.choice([-1.0, 1.0]), 0.0, 0.0])
    else:
        allowed = np.flatnonzero(atlas.surface[:, 2] > -44)
        # The base of the skull is a favoured site: half of these points are drawn from there.
        base = allowed[atlas.surface[allowed, 2] < -8]
        pick = rng.choice(base if rng.random() < 0.4 else allowed)
        point, normal = atlas.surface[pick].astype(float), atlas.inward[pick].astype(float)
    centre = point + normal * radius * rng.uniform(0.5, 0.85)
    side = np.cross(normal, rng.standard_normal(3))
    side /= np.linalg.norm(side)
    axes = np.stack([normal, side, np.cross(normal, side)], -1)
    radii = radius * np.array([rng.uniform(0.8, 1.0), rng.uniform(0.95, 1.2), rng.uniform(0.95, 1.2)])
    return Lesion(
        "meningioma", centre, radii, axes, irregular=rng.uniform(0.04, 0.16), offset=rng.uniform(0, 64, 3),
        signal=rng.uniform(1.7, 2.4), uneven=rng.uniform(0.04, 0.18), rim=0.0, core=0.0, enhances=True,
        oedema=rng.uniform(3, 12) if rng.random() < 0.35 else 0.0,
        blur=rng.uniform(1.0, 2.2), push=rng.uniform(0.55, 0.95), attachment=point, falx=falx,
    )  # fmt: skip


def _pituitary(atlas: Atlas, rng: np.random.Generator) -> Lesion:
    radius = rng.uniform(8, 16.5)
    # Small ones fill the sella; larger ones grow upwards, where nothing stops them.
    centre = SELLA + np.array([rng.normal(0, 1.2), rng.normal(0.5, 1.2), 0.3 * (radius - 5) + rng.normal(0, 0.8)])
    radii = radius * np.array([rng.uniform(0.95, 1.25), rng.uniform(0.85, 1.05), rng.uniform(0.85, 1.1)])
    return Lesion(
        "pituitary", centre, radii, np.eye(3), irregular=rng.uniform(0.06, 0.2), offset=rng.uniform(0, 64, 3),
        signal=rng.uniform(1.4, 2.1), uneven=rng.uniform(0.08, 0.3), rim=0.0, core=0.0, enhances=True, oedema=0.0,
        blur=rng.uniform(1.0, 2.5), push=rng.uniform(0.6, 0.95),
        upper=radius * rng.uniform(0.6, 0.95) if radius > 9 and rng.random() < 0.6 else 0.0,
    )  # fmt: skip


def on_falx(y: Array | float, z: Array | float) -> Array:
    """Whether a point of the midline belongs to the falx: above the corpus callosum and the tentorium."""
    outside = ((np.asarray(y) + 4) / 50) ** 2 + ((np.asarray(z) - 2) / 37) ** 2 > 1
    return outside & (np.asarray(z) > np.where(np.asarray(y) < -40, -8 - 0.55 * (np.asarray(y) + 40) - 22, -14))


def distance(lesion: Lesion, points: Array, dura: Array, bumps: Array) -> Array:
    """Signed distance (mm, negative inside) to the tumour's border at ``points`` [3, …].

    ``dura`` is the signed distance to the dura and ``bumps`` a texture (mean 0, deviation 1) at the same points.
    """
    shift = points - lesion.centre.astype(np.float32).reshape(3, *[1] * (points.ndim - 1))
    local = [sum(lesion.axes[i, k] * shift[i] for i in range(3)) for k in range(3)]
    body = ellipsoid(local, (0, 0, 0), tuple(lesion.radii)) + lesion.irregular * lesion.radius * 0.7 * bumps
    if lesion.kind == "glioma":
        return np.maximum(body, dura + 3.0)  # inside the brain: cortex and fluid remain between it and the dura
    if lesion.kind == "pituitary":
        if lesion.upper:
            top = (0.0, 0.0, float(lesion.radii[2] + 0.4 * lesion.upper))
            wide = (1.15 * lesion.upper, 0.95 * lesion.upper, 0.9 * lesion.upper)
            body = smooth_min(body, ellipsoid(list(shift), top, wide) + lesion.irregular * lesion.upper * bumps, 2.5)
        return body
    if lesion.falx:  # it keeps to its own side of the falx
        return np.maximum(np.maximum(body, dura), 0.4 - np.sign(lesion.centre[0]) * points[0])
    return np.maximum(body, dura)


def push_away(lesion: Lesion, points: Array, dura: Array) -> Array:
    """Where the brain at ``points`` [3, …] (mm) lay before the tumour displaced it.

    A ball of volume V growing in an incompressible medium moves what was at radius a to (a³ + V')^(1/3); this is the
    inverse, limited near the skull, which does not give way, and faded out over four radii.
    """
    shift = points - lesion.centre.astype(np.float32).reshape(3, *[1] * (points.ndim - 1))
    away = np.sqrt((shift**2).sum(0)) + 1e-3
    grown = lesion.push * lesion.radius**3
    before = np.cbrt(np.maximum(away**3 - grown, (0.25 * away) ** 3))
    fade = np.clip(1.6 - away / (2.8 * lesion.radius), 0, 1) * np.clip(-dura / 9, 0, 1)
    return points - shift * (fade * (1 - before / away))


def paint(lesion: Lesion, image: Array, points: Array, dura: Array, fine: Array, coarse: Array, white: Array,
          soft: float) -> Array:  # fmt: skip
    """Draw the lesion into ``image`` (relative to white matter, changed in place); return the tumour mask, bool.

    ``points`` [3, H, W] in mm, ``dura`` [H, W] the signed distance to the dura, ``fine`` and ``coarse`` [H, W]
    textures, ``white`` [H, W] the share of white matter, ``soft`` the width (mm) over which borders blend.
    The mask is the enhancing body with its core, without oedema and dural tail, as annotators draw it.
    """
    border = distance(lesion, points, dura, coarse)

    soft = max(soft, lesion.blur)

    def cover(signed: Array) -> Array:
        return np.clip(0.5 - signed / soft, 0, 1)

    if lesion.oedema:
        fingers = border - lesion.oedema * (0.25 + 0.75 * white) * (1 + 0.3 * coarse)
        swollen = np.clip(0.5 - fingers / 5, 0, 1) * np.clip(-dura / 4, 0, 1)
        image += swollen * np.clip(white + 0.25, 0, 1) * (0.66 - image) * 0.75
    texture = 1 + lesion.uneven * (0.6 * coarse + 0.4 * fine)
    if not lesion.enhances:
        inside = np.full_like(image, lesion.core) * (1 + 0.4 * (texture - 1))
        weight = np.clip(0.5 - border / 4, 0, 1)  # low-grade: the border fades
    elif lesion.rim:
        thickness = lesion.rim * np.clip(1 + 0.5 * coarse + 0.35 * fine, 0.2, 2.4)
        ring = cover(-(border + thickness)) * np.clip(0.85 + 0.25 * fine, 0.3, 1)
        inside = lesion.core * (1 + 0.15 * fine) * (1 - ring) + lesion.signal * texture * ring
        weight = cover(border)
    else:
        inside = lesion.signal * texture
        weight = cover(border)
    if lesion.kind == "meningioma":
        cleft = np.exp(-(((border - 1.0) / 0.9) ** 2)) * np.clip(-dura / 3 - 0.3, 0, 1)
        image += 0.45 * cleft * (0.4 - image)
        _tail(lesion, image, points, dura)
    image += weight * (inside - image)
    return border < 0


def _tail(lesion: Lesion, image: Array, points: Array, dura: Array) -> None:
    """Thickened, enhancing dura that tapers away from a meningioma's attachment."""
    assert lesion.attachment is not None
    away = np.sqrt(((points - lesion.attachment.reshape(3, 1, 1)) ** 2).sum(0)) / lesion.radius
    sheet = np.abs(points[0]) if lesion.falx else np.abs(dura + 0.6)
    taper = np.clip(2.3 - away, 0, 1)
    weight = np.clip(1.5 * taper + 0.6 - sheet, 0, 1) * (taper > 0)
    if lesion.falx:
        weight = weight * on_falx(points[1], points[2])
    image += weight * (0.9 * lesion.signal - image)
