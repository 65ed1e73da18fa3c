"""The signal of a slice: distance and texture maps → tissues, painted from the outside in, and the tumour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from scipy import ndimage

from brain_dist.phantom.atlas import STRUCTURES, Atlas
from brain_dist.phantom.head import MAX_DISTANCE, coverage
from brain_dist.phantom.lesions import Lesion, lesion_distance, on_falx
from brain_dist.phantom.patients import TEXTURES, Patient

Array = np.ndarray
Maps = Mapping[str, Array]  # structure → distance (mm) and texture → value over a slice, [H, W] each


def resize(values: Array, size: int) -> Array:
    """Bilinear interpolation of the last two axes to ``size`` x ``size``; the corners stay in place."""
    for axis in (-1, -2):
        length = values.shape[axis]
        position = np.linspace(0, length - 1, size, dtype=np.float32)
        low = np.minimum(position.astype(int), length - 2)
        fraction = position - low
        if axis == -2:
            fraction = fraction[:, None]
        lower = np.take(values, low, axis)
        values = lower + fraction * (np.take(values, low + 1, axis) - lower)
    return values


def sample_texture(atlas: Atlas, cube: int, points: Array, offset: Array, voxel: tuple[float, float, float]) -> Array:
    """A texture cube at ``points`` [3, …] (mm), with voxels of ``voxel`` mm along x, y and z."""
    shape = (3, *[1] * (points.ndim - 1))
    index = points / np.array(voxel, np.float32).reshape(shape) + offset.astype(np.float32).reshape(shape)
    return ndimage.map_coordinates(atlas.textures[cube], index, order=1, mode="grid-wrap", prefilter=False)


def slice_maps(atlas: Atlas, patient: Patient, points: Array, dura: Array, size: int) -> dict[str, Array]:
    """Distances (mm) to all structures and all textures over a slice, [size, size] each.

    They are sampled at ``points`` [3, rows, columns], where ``dura`` is already known, and interpolated.
    """
    skin = atlas.distance("skin", points)
    head = skin < 2
    face = (dura > -4) & head  # contains all other structures except the enhancing ones
    samples = [dura, skin]
    for structure in STRUCTURES[2:]:
        region = head if structure == "enhancing" else face
        values = np.full_like(dura, MAX_DISTANCE)
        values[region] = atlas.distance(structure, points[:, region])
        samples.append(values)
    for name, (cube, voxel) in TEXTURES.items():
        region = face if name in ("fibres", "patches") else head
        values = np.zeros_like(dura)
        values[region] = sample_texture(atlas, cube, points[:, region], patient.texture_offsets[name], voxel)
        samples.append(values)
    return dict(zip((*STRUCTURES, *TEXTURES), resize(np.stack(samples), size), strict=True))


def gyral_displacement(patient: Patient, maps: Maps) -> Array:
    """Local displacement (mm) [3, H, W] of the brain, because no two people have the same sulci."""
    amplitude = patient.tissue["gyri"] * np.clip(-maps["dura"] / 5, 0, 1)
    coarse, wide, fine = maps["coarse"], maps["wide"], maps["fine"]
    return np.stack([coarse, wide, fine * 0.5 - coarse * 0.5]) * amplitude


def head_signal(patient: Patient, points: Array, maps: Maps, brain: Array, pixel: float, plane: str) -> Array:
    """Signal float32 [H, W] of the healthy head, relative to white matter.

    Args:
        patient: whose head.
        points: [3, H, W], MNI mm.
        maps: see :func:`slice_maps`.
        brain: [H, W], the template's intensity.
        pixel: size of a pixel, mm; borders are that wide.
        plane: plane of the slice.
    """
    muscle = patient.tissue["muscle"] * np.clip(1 + 0.13 * maps["fibres"] + 0.15 * maps["patches"], 0.4, 1.6)
    image = muscle * (1 + 0.05 * maps["fine"])
    signal = np.interp(brain, *patient.intensity_curve).astype(np.float32) * (1 + 0.015 * maps["fine"])
    in_dura = coverage(maps["dura"] - 0.9, pixel)
    for weight, value in (
        *_outside_the_brain(patient.tissue, points, maps, pixel),
        (in_dura, signal),
        *_meninges(patient.tissue, points, maps, pixel, plane),
    ):
        image += weight * (value - image)
    return image


def _outside_the_brain(
    tissue: Mapping[str, float], points: Array, maps: Maps, pixel: float
) -> Iterator[tuple[Array, Array | float]]:
    """Layers over the muscle: the fraction of each pixel that a tissue covers, and its signal."""
    x, y, z = points
    fine, _, coarse, wide, fibres, patches = (maps[name] for name in TEXTURES)
    dura, fat, cover = maps["dura"], tissue["fat"], partial(coverage, width=pixel)
    # streaks of fat in the muscles
    yield np.clip(0.4 * fibres + 0.25 * patches - 0.25, 0, 0.6), 0.6 * fat
    yield np.clip(0.7 * patches + 0.4 * fibres - 1.1, 0, 0.6), 0.75 * fat
    # subcutaneous fat, skin, and the fat of orbits and cheeks
    neck = np.clip((-40 - z) / 30, 0, 1)
    depth = -maps["skin"]
    thickness = 1.5 + tissue["scalp"] + 3.0 * neck + (0.15 + 0.6 * neck) * coarse + (0.4 + neck) * wide
    yield cover(depth - thickness), fat * (1 + 0.07 * fine)
    yield cover(depth - 1.4), 0.95
    yield cover(maps["fat"] + 0.8 * fine), 0.9 * fat * (1 + 0.06 * fine)
    # bones: a dark cortex around marrow; the vault is a shell around the dura
    base = np.clip((-12 - z) / 20, 0, 1)
    skull = tissue["skull"] * (1 + 0.1 * wide + 0.03 * coarse - 0.45 * base)
    vault = np.maximum(0.9 - dura, dura - 0.9 - skull)
    petrous = np.clip(np.abs(x) / 12 - 1.5, 0, 1) * (np.abs(y + 34) < 26) * (z > -66)
    marrow = tissue["marrow"] * (1 + 0.22 * fine)
    yield cover(vault), 0.1
    yield cover(vault + 1.7) * (1 - 0.8 * base), marrow
    bone = maps["bone"] + 1.1 * coarse
    yield cover(bone), 0.1
    yield cover(bone + (1.3 + 0.4 * fine)) * (1 - 0.85 * petrous), marrow
    # air spaces with their mucosa
    air = maps["air"] + 1.6 * coarse + 0.5 * fine
    yield 0.8 * cover(air - 0.9 - 0.7 * patches), tissue["mucosa"] * (1 + 0.1 * fine)
    yield cover(air), 0.03
    # sclera, the eyes' and the spinal canal's fluid, nerves
    yield cover(maps["fluid"] - 1.2) * ((y > 30) & (dura > 1)), 0.9
    yield cover(maps["fluid"]), tissue["fluid"]
    yield cover(maps["nerve"]), 0.9


def _meninges(
    tissue: Mapping[str, float], points: Array, maps: Maps, pixel: float, plane: str
) -> Iterator[tuple[Array, Array | float]]:
    """Layers over the brain: dura, falx, cortical veins, and the structures that take up contrast agent."""
    x, y, z = points
    fine, dura = maps["fine"], maps["dura"]
    yield 0.5 * np.exp(-(((dura - 0.9) / 0.7) ** 2)), tissue["dura"]
    falx = np.exp(-((x / 0.7) ** 2)) * on_falx(y, z) * (dura < 0)
    yield falx * (0.15 if plane == "sagittal" else 0.7), 1.1 * tissue["dura"]
    veins = np.exp(-(fine**2 + maps["other"] ** 2) / tissue["veins"] ** 2 * 0.7)
    veins = veins * np.exp(-np.abs(dura + 3) / 9) * (dura < 1)
    yield np.clip(1.3 * veins, 0, 1), tissue["vessel"]
    yield coverage(maps["enhancing"] + 0.3 * fine, pixel), tissue["vessel"] * (1 + 0.08 * fine)


def add_lesion(lesion: Lesion, image: Array, points: Array, maps: Maps, white_matter: Array, pixel: float) -> Array:
    """Draw the tumour into ``image`` and return its mask.

    Args:
        lesion: the tumour.
        image: float32 [H, W], signal relative to white matter; changed in place.
        points: [3, H, W], mm.
        maps: the slice's maps [H, W]: ``dura`` (signed distance, mm) and the textures ``fine`` and ``bumps``.
        white_matter: [H, W], fraction of white matter.
        pixel: size of a pixel, mm.

    Returns:
        bool [H, W]: the enhancing body and its core, without oedema and dural tail, as annotators draw it.
    """
    dura, bumps = maps["dura"], maps["bumps"]
    border = lesion_distance(lesion, points, dura, bumps)
    if lesion.oedema_width:  # it darkens the white matter around the tumour, along which it spreads
        extent = border - lesion.oedema_width * (0.25 + 0.75 * white_matter) * (1 + 0.3 * bumps)
        weight = np.clip(0.5 - extent / 5, 0, 1) * np.clip(-dura / 4, 0, 1)
        image += weight * np.clip(white_matter + 0.25, 0, 1) * (0.66 - image) * 0.75
    signal, weight = _body(lesion, image, border, maps, max(pixel, lesion.border_width))
    if lesion.kind == "meningioma":
        cleft = np.exp(-(((border - 1.0) / 0.9) ** 2)) * np.clip(-dura / 3 - 0.3, 0, 1)
        image += 0.45 * cleft * (0.4 - image)
        _add_dural_tail(lesion, image, points, dura)
    image += weight * (signal - image)
    return border < 0


def _body(lesion: Lesion, image: Array, border: Array, maps: Maps, width: float) -> tuple[Array, Array]:
    """Signal of the tumour's body and the fraction of it in each pixel."""
    fine, bumps = maps["fine"], maps["bumps"]
    texture = 1 + lesion.heterogeneity * (0.6 * bumps + 0.4 * fine)
    if not lesion.enhances:  # low-grade: the border fades over 4 mm
        return np.full_like(image, lesion.core_signal) * (1 + 0.4 * (texture - 1)), coverage(border, 4)
    if not lesion.ring_width:
        return lesion.signal * texture, coverage(border, width)
    thickness = lesion.ring_width * np.clip(1 + 0.5 * bumps + 0.35 * fine, 0.2, 2.4)
    ring = coverage(-(border + thickness), width) * np.clip(0.85 + 0.25 * fine, 0.3, 1)
    signal = lesion.core_signal * (1 + 0.15 * fine) * (1 - ring) + lesion.signal * texture * ring
    return signal, coverage(border, width)


def _add_dural_tail(lesion: Lesion, image: Array, points: Array, dura: Array) -> None:
    """Thicken and brighten the dura, tapering away from a meningioma's attachment."""
    assert lesion.attachment is not None
    distance = np.sqrt(((points - lesion.attachment.reshape(3, 1, 1)) ** 2).sum(0)) / lesion.radius
    sheet = np.abs(points[0]) if lesion.falcine else np.abs(dura + 0.6)
    taper = np.clip(2.3 - distance, 0, 1)
    weight = np.clip(1.5 * taper + 0.6 - sheet, 0, 1) * (taper > 0)
    if lesion.falcine:
        weight = weight * on_falx(points[1], points[2])
    image += weight * (0.9 * lesion.signal - image)
