"""Slices of a phantom patient: pure functions of (patient, slice number).

A slice is sampled straight from the undeformed anatomy: its pixels' scanner coordinates go through the patient's affine
and elastic deformation to MNI coordinates, where the atlas and the lesion are known. No volume is ever warped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

from brain_dist.phantom.anatomy import FIELDS, LOW, REACH, Atlas, load_atlas
from brain_dist.phantom.lesions import distance, on_falx, paint, push_away
from brain_dist.phantom.patients import KNOTS, TEXTURES, Patient

Array = np.ndarray
PLANES = ("axial", "coronal", "sagittal")
# In-plane directions (columns to the right, rows downwards) and the normal, as a radiologist views each plane.
VIEWS = {
    "axial": ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "coronal": ((-1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "sagittal": ((0, -1, 0), (0, 0, -1), (1, 0, 0)),
}


@dataclass(frozen=True)
class Slice:
    """``image`` uint8 [size, size]; ``mask`` bool [size, size], the tumour; ``truth`` what was drawn."""

    image: Array
    mask: Array
    truth: dict[str, str | float]


def render(person: Patient, number: int, size: int, planes: Sequence[str] = PLANES, lesion: bool = True) -> Slice:
    """Slice ``number`` of ``person``, ``size`` pixels square, along one of ``planes``; ``lesion=False``: no tumour."""
    atlas = load_atlas()
    rng = np.random.default_rng([person.seed, 5, person.number, number])
    plane = planes[int(rng.integers(len(planes)))]
    frame = _frame(person, plane, rng)
    reach = rng.uniform(-0.55, 0.55) * person.target.radius
    nodes = int(person.scanner.fov / 2.2) + 2
    while True:  # a slice that misses the target's bumpy border moves towards its middle
        position = _through(person, frame, person.target.centre + reach * frame[2])
        points = _points(person, frame, position, nodes)
        dura = atlas.sample("dura", points)
        coarse = _texture(atlas, 1, points, person.target.offset, (2.0, 2.0, 2.0))
        border = distance(person.target, points, dura, coarse)
        if (border < 0).sum() * (person.scanner.fov / (nodes - 1)) ** 2 > 90 or abs(reach) < 0.2:
            break
        reach *= 0.5

    fine_size = size * -(-128 // size)  # small pictures are cut finer, then reduced as a scanner does
    views = _fields(atlas, person, points, dura, fine_size)
    views["lumps"] = _enlarge(coarse, fine_size)
    points = _enlarge(points, fine_size)
    moved = push_away(person.target, points, views["dura"]) if lesion and person.lesion else points
    moved = moved + _gyri(person, views)
    index = moved - atlas.brain_origin.astype(np.float32).reshape(3, 1, 1)
    brain = ndimage.map_coordinates(atlas.brain, index, np.float32, order=1, mode="constant", prefilter=False)
    soft = max(1.0, person.scanner.fov / fine_size)
    image = _tissue(person, plane, points, views, brain, soft)
    mask = np.zeros(image.shape, bool)
    if lesion and person.lesion:
        white = np.clip((brain - 165) / 50, 0, 1)
        mask = paint(person.lesion, image, points, views["dura"], views["fine"], views["lumps"], white, soft)
    image *= np.clip(0.5 - views["skin"] / soft, 0, 1)
    picture = _scan(person, image, points, views["skin"], size, rng)
    mask = mask.reshape(size, fine_size // size, size, -1).mean((1, 3)) >= 0.5
    return Slice(picture, mask, _truth(person, plane, mask))


def _frame(person: Patient, plane: str, rng: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """Column, row and normal directions of a slice (MNI mm per scanner mm) and its in-plane jitter (mm)."""
    right, down, normal = (np.array(v, float) for v in VIEWS[plane])
    roll = np.deg2rad(rng.normal(0, 3))
    right, down = np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right
    middle = np.array([0.0, -8.0, {"axial": 0.0, "coronal": -6.0, "sagittal": -14.0}[plane]])
    corner = middle + rng.normal(0, 4, 3)
    return right, down, normal, corner


def _elastic(person: Patient, points: Array) -> Array:
    """Elastic displacement (mm) at ``points`` [3, …]."""
    index = (points - LOW.reshape(3, *[1] * (points.ndim - 1))) / KNOTS
    return np.stack([ndimage.map_coordinates(w, index, np.float32, order=3, mode="nearest", prefilter=False)
                     for w in person.warp])  # fmt: skip


def _through(person: Patient, frame: tuple[Array, ...], target: Array) -> Array:
    """Scanner coordinates (mm) of the middle of the slice that cuts the MNI point ``target``."""
    before = target.reshape(3, 1)
    for _ in range(4):  # invert the displacement: it is smooth and small, so this converges at once
        before = target.reshape(3, 1) - _elastic(person, before)
    at = np.linalg.solve(person.affine, before[:, 0] - person.shift)
    normal, middle = frame[2], frame[3]
    return middle + normal * float(normal @ (at - middle))


def _points(person: Patient, frame: tuple[Array, ...], position: Array, nodes: int) -> Array:
    """MNI coordinates (mm) of a ``nodes`` x ``nodes`` lattice over the field of view, float32 [3, rows, columns]."""
    coarse = nodes // 3 + 2
    t = np.linspace(-0.5, 0.5, coarse) * person.scanner.fov
    right, down, start = (person.affine @ v for v in (frame[0], frame[1], position))
    plain = (start + person.shift).reshape(3, 1, 1) + right.reshape(3, 1, 1) * t + down.reshape(3, 1, 1) * t[:, None]
    return _enlarge((plain + _elastic(person, plain)).astype(np.float32), nodes)


def _enlarge(values: Array, size: int) -> Array:
    """Bilinear interpolation of the last two axes to ``size`` x ``size``, corners on corners."""
    for axis in (-1, -2):
        have = values.shape[axis]
        at = np.linspace(0, have - 1, size, dtype=np.float32)
        low = np.minimum(at.astype(int), have - 2)
        part = at - low
        if axis == -2:
            part = part[:, None]
        first = np.take(values, low, axis)
        values = first + part * (np.take(values, low + 1, axis) - first)
    return values


def _texture(atlas: Atlas, which: int, points: Array, offset: Array, step: tuple[float, float, float]) -> Array:
    """Random texture at ``points`` [3, …]; ``step`` mm a voxel along x, y and z."""
    shape = (3, *[1] * (points.ndim - 1))
    index = points / np.array(step, np.float32).reshape(shape) + offset.astype(np.float32).reshape(shape)
    return ndimage.map_coordinates(atlas.noise[which], index, order=1, mode="grid-wrap", prefilter=False)


def _fields(atlas: Atlas, person: Patient, points: Array, dura: Array, size: int) -> dict[str, Array]:
    """The atlas's distances and three textures over the slice, [size, size] each."""
    skin = atlas.sample("skin", points)
    face = (dura > -4) & (skin < 2)  # the only place where the other solids lie, but for the vessels
    stack = [dura, skin]
    for name in FIELDS[2:]:
        where = (skin < 2) if name == "enhancing" else face
        values = np.full_like(dura, REACH)
        values[where] = atlas.sample(name, points[:, where])
        stack.append(values)
    for name, (kind, step) in TEXTURES.items():
        where = face if name in ("fibres", "patches") else (skin < 2)
        values = np.zeros_like(dura)
        values[where] = _texture(atlas, kind, points[:, where], person.textures[name], step)
        stack.append(values)
    return dict(zip((*FIELDS, *TEXTURES), _enlarge(np.stack(stack), size), strict=True))


def _gyri(person: Patient, v: dict[str, Array]) -> Array:
    """Displacement (mm) [3, H, W] of the brain alone: no two people share the course of their sulci."""
    free = person.tissue["gyri"] * np.clip(-v["dura"] / 5, 0, 1)
    return np.stack([v["coarse"], v["wide"], v["fine"] * 0.5 - v["coarse"] * 0.5]) * free


def _tissue(person: Patient, plane: str, points: Array, v: dict[str, Array], brain: Array, soft: float) -> Array:
    """Signal of the healthy head relative to white matter, painted from the outside in."""
    t, fine, coarse, wide, dura = person.tissue, v["fine"], v["coarse"], v["wide"], v["dura"]

    # Muscle with streaks of fat, then the layers below the skin.
    def cover(signed: Array) -> Array:
        return np.clip(0.5 - signed / soft, 0, 1)

    def lay(weight: Array, value: Array | float) -> None:
        image[:] += weight * (value - image)

    fibres, patches = v["fibres"], v["patches"]
    image = t["muscle"] * np.clip(1 + 0.13 * fibres + 0.15 * patches, 0.4, 1.6) * (1 + 0.05 * fine)
    lay(np.clip(0.4 * fibres + 0.25 * patches - 0.25, 0, 0.6), 0.6 * t["fat"])
    lay(np.clip(0.7 * patches + 0.4 * fibres - 1.1, 0, 0.6), 0.75 * t["fat"])
    low = np.clip((-40 - points[2]) / 30, 0, 1)
    depth = -v["skin"]
    lay(
        cover(depth - (1.5 + t["scalp"] + 3.0 * low + (0.15 + 0.6 * low) * coarse + (0.4 + low) * wide)),
        t["fat"] * (1 + 0.07 * fine),
    )
    lay(cover(depth - 1.4), 0.95)
    lay(cover(v["fat"] + 0.8 * fine), 0.9 * t["fat"] * (1 + 0.06 * fine))
    # Bone: dark cortex around marrow; the skull is a shell around the dura.
    base = np.clip((-12 - points[2]) / 20, 0, 1)
    skull = t["skull"] * (1 + 0.1 * wide + 0.03 * coarse - 0.45 * base)
    shell = np.maximum(0.9 - dura, dura - 0.9 - skull)
    marrow = t["marrow"] * (1 + 0.22 * fine)
    petrous = np.clip(np.abs(points[0]) / 12 - 1.5, 0, 1) * (np.abs(points[1] + 34) < 26) * (points[2] > -66)
    for solid, cortex, filled in (
        (shell, 1.7, 1 - 0.8 * base),
        (v["bone"] + 1.1 * coarse, 1.3 + 0.4 * fine, 1 - 0.85 * petrous),
    ):
        lay(cover(solid), 0.1)
        lay(cover(solid + cortex) * filled, marrow)
    air = v["air"] + 1.6 * coarse + 0.5 * fine
    lay(0.8 * cover(air - 0.9 - 0.7 * patches), t["mucosa"] * (1 + 0.1 * fine))
    lay(cover(air), 0.03)
    globe = (points[1] > 30) & (dura > 1)
    lay(cover(v["fluid"] - 1.2) * globe, 0.9)
    lay(cover(v["fluid"]), t["fluid"])
    lay(cover(v["nerve"]), 0.9)
    # Inside the skull: fluid, then the brain, then what takes up contrast agent.
    lay(cover(dura - 0.9), np.interp(brain, *person.curve).astype(np.float32) * (1 + 0.015 * fine))
    lay(0.5 * np.exp(-(((dura - 0.9) / 0.7) ** 2)), t["dura"])
    sheet = np.exp(-((points[0] / 0.7) ** 2)) * on_falx(points[1], points[2]) * (dura < 0)
    lay(sheet * (0.15 if plane == "sagittal" else 0.7), 1.1 * t["dura"])
    thin = np.exp(-(fine**2 + v["other"] ** 2) / t["veins"] ** 2 * 0.7) * np.exp(-np.abs(dura + 3) / 9) * (dura < 1)
    lay(np.clip(1.3 * thin, 0, 1), t["vessel"])
    lay(cover(v["enhancing"] + 0.3 * fine), t["vessel"] * (1 + 0.08 * fine))
    return image


def _scan(person: Patient, image: Array, points: Array, skin: Array, size: int, rng: np.random.Generator) -> Array:
    """What the scanner makes of the signal: coil profile, finite matrix, Rician noise, display window; uint8."""
    scanner = person.scanner
    white = scanner.top / person.tissue["fat"] / (1 + scanner.rim)  # scanners scale to the brightest tissue: fat
    x, y, z = points / np.float32(90)
    terms = (x, y, z, x * y, y * z, x * z, x * x, y * y, z * z)
    bias = sum(np.float32(c) * term for c, term in zip(scanner.bias, terms, strict=True))
    signal = image * np.exp(bias) * (1 + scanner.rim * np.exp(np.minimum(skin, 0) / 22))
    signal /= 1 + np.exp(np.clip((scanner.fall[0] - points[2]) / scanner.fall[1], -30, 30))
    # Acquisition in k-space: only frequencies up to 1 / (2 voxel) are measured, each with complex noise.
    kspace = fft.fftshift(fft.fft2(signal.astype(np.complex64), norm="forward"))
    start = (len(kspace) - size) // 2
    kspace = kspace[start : start + size, start : start + size]
    share = min(1.0, scanner.fov / size / scanner.voxel)
    noise = rng.standard_normal((2, size, size), dtype=np.float32) * np.float32(scanner.noise / size / share)
    frequency = np.abs(fft.fftshift(fft.fftfreq(size))) * 2 / share
    taper = np.cos(np.clip((frequency - 0.7) / 0.3, 0, 1) * np.pi / 2).astype(np.float32)
    kspace = (kspace + noise[0] + 1j * noise[1]) * taper * taper[:, None]
    measured = np.abs(fft.ifft2(fft.ifftshift(kspace), norm="forward"))
    return np.rint(255 * np.clip(white * measured, 0, 1) ** scanner.gamma).astype(np.uint8)


def _truth(person: Patient, plane: str, mask: Array) -> dict[str, str | float]:
    """What was drawn: the plane, the tumour's box and place, the scanner. Tumour entries are empty where none is."""
    scanner, rows, columns = person.scanner, np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    truth: dict[str, str | float] = {"plane": plane}
    box = {"x": 0.0, "y": 0.0, "width": 0, "height": 0}
    if len(rows):
        box = {"x": (columns[0] + columns[-1]) / 2, "y": (rows[0] + rows[-1]) / 2,
               "width": int(columns[-1] - columns[0] + 1), "height": int(rows[-1] - rows[0] + 1)}  # fmt: skip
    truth |= {k: value if len(rows) else "" for k, value in box.items()}
    truth["area"] = int(mask.sum()) if person.lesion else ""
    for axis, value in zip("xyz", person.target.centre, strict=True):
        truth[f"mni_{axis}"] = round(float(value), 2) if person.lesion else ""
    truth["radius_mm"] = round(person.target.radius, 2) if person.lesion else ""
    truth |= {"fov_mm": round(scanner.fov, 2), "voxel_mm": round(scanner.voxel, 3), "noise": round(scanner.noise, 4),
              "top": round(scanner.top, 3), "gamma": round(scanner.gamma, 3)}  # fmt: skip
    return truth
