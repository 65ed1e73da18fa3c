"""The signal of the healthy head in a slice: distance and texture maps → tissues, painted from the outside in."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from brain_dist.phantom.atlas import STRUCTURES, Atlas
from brain_dist.phantom.geometry import resize
from brain_dist.phantom.lesions import on_falx
from brain_dist.phantom.patients import TEXTURES, Patient
from brain_dist.phantom.solids import MAX_DISTANCE, coverage

Array = np.ndarray


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


def gyral_displacement(patient: Patient, maps: Mapping[str, Array]) -> Array:
    """Local displacement (mm) [3, H, W] of the brain, because no two people have the same sulci."""
    amplitude = patient.tissue.gyri * np.clip(-maps["dura"] / 5, 0, 1)
    coarse, wide, fine = maps["coarse"], maps["wide"], maps["fine"]
    return np.stack([coarse, wide, fine * 0.5 - coarse * 0.5]) * amplitude


class HeadPainter:
    """Paints the healthy head's tissues over each other into one slice.

    Args:
        patient: whose head.
        points: [3, H, W], MNI mm.
        maps: see :func:`slice_maps`.
        pixel: size of a pixel, mm; borders are that wide.

    Attributes:
        image: float32 [H, W], signal relative to white matter.
    """

    def __init__(self, patient: Patient, points: Array, maps: Mapping[str, Array], pixel: float) -> None:
        self._tissue = patient.tissue
        self._curve = patient.intensity_curve
        self._points = points
        self._maps = maps
        self._pixel = pixel
        fibres, patches, fine = maps["fibres"], maps["patches"], maps["fine"]
        muscle = self._tissue.muscle * np.clip(1 + 0.13 * fibres + 0.15 * patches, 0.4, 1.6)
        self.image = muscle * (1 + 0.05 * fine)

    def paint(self, brain: Array, plane: str) -> Array:
        """Paint all tissues; ``brain`` [H, W] is the template's intensity. Returns ``image``."""
        self._muscle_fat()
        self._scalp()
        self._bones()
        self._face()
        self._brain(brain)
        self._meninges(plane)
        return self.image

    def _lay(self, weight: Array, value: Array | float) -> None:
        """Cover the fraction ``weight`` of each pixel with a signal."""
        self.image[:] += weight * (value - self.image)

    def _cover(self, distance: Array) -> Array:
        return coverage(distance, self._pixel)

    def _muscle_fat(self) -> None:
        """Streaks of fat in the muscles."""
        fibres, patches, fat = self._maps["fibres"], self._maps["patches"], self._tissue.fat
        self._lay(np.clip(0.4 * fibres + 0.25 * patches - 0.25, 0, 0.6), 0.6 * fat)
        self._lay(np.clip(0.7 * patches + 0.4 * fibres - 1.1, 0, 0.6), 0.75 * fat)

    def _scalp(self) -> None:
        """Subcutaneous fat, skin, and the fat of orbits and cheeks."""
        maps, tissue, fine = self._maps, self._tissue, self._maps["fine"]
        neck = np.clip((-40 - self._points[2]) / 30, 0, 1)
        depth = -maps["skin"]
        thickness = 1.5 + tissue.scalp + 3.0 * neck + (0.15 + 0.6 * neck) * maps["coarse"] + (0.4 + neck) * maps["wide"]
        self._lay(self._cover(depth - thickness), tissue.fat * (1 + 0.07 * fine))
        self._lay(self._cover(depth - 1.4), 0.95)
        self._lay(self._cover(maps["fat"] + 0.8 * fine), 0.9 * tissue.fat * (1 + 0.06 * fine))

    def _bones(self) -> None:
        """Dark cortex around marrow; the vault is a shell around the dura."""
        maps, tissue, (x, y, z) = self._maps, self._tissue, self._points
        fine, coarse, dura = maps["fine"], maps["coarse"], maps["dura"]
        base = np.clip((-12 - z) / 20, 0, 1)
        skull = tissue.skull * (1 + 0.1 * maps["wide"] + 0.03 * coarse - 0.45 * base)
        vault = np.maximum(0.9 - dura, dura - 0.9 - skull)
        petrous = np.clip(np.abs(x) / 12 - 1.5, 0, 1) * (np.abs(y + 34) < 26) * (z > -66)
        marrow = tissue.marrow * (1 + 0.22 * fine)
        for solid, cortex, marrow_fraction in (
            (vault, 1.7, 1 - 0.8 * base),
            (maps["bone"] + 1.1 * coarse, 1.3 + 0.4 * fine, 1 - 0.85 * petrous),
        ):
            self._lay(self._cover(solid), 0.1)
            self._lay(self._cover(solid + cortex) * marrow_fraction, marrow)

    def _face(self) -> None:
        """Air spaces with their mucosa, eyes, cerebrospinal fluid outside the skull, nerves."""
        maps, tissue, fine = self._maps, self._tissue, self._maps["fine"]
        air = maps["air"] + 1.6 * maps["coarse"] + 0.5 * fine
        self._lay(0.8 * self._cover(air - 0.9 - 0.7 * maps["patches"]), tissue.mucosa * (1 + 0.1 * fine))
        self._lay(self._cover(air), 0.03)
        eyes = (self._points[1] > 30) & (maps["dura"] > 1)
        self._lay(self._cover(maps["fluid"] - 1.2) * eyes, 0.9)  # sclera
        self._lay(self._cover(maps["fluid"]), tissue.fluid)
        self._lay(self._cover(maps["nerve"]), 0.9)

    def _brain(self, brain: Array) -> None:
        """The brain in its fluid."""
        signal = np.interp(brain, *self._curve).astype(np.float32) * (1 + 0.015 * self._maps["fine"])
        self._lay(self._cover(self._maps["dura"] - 0.9), signal)

    def _meninges(self, plane: str) -> None:
        """Dura, falx, cortical veins, and the structures that take up contrast agent."""
        maps, tissue, (x, y, z) = self._maps, self._tissue, self._points
        fine, dura = maps["fine"], maps["dura"]
        self._lay(0.5 * np.exp(-(((dura - 0.9) / 0.7) ** 2)), tissue.dura)
        falx = np.exp(-((x / 0.7) ** 2)) * on_falx(y, z) * (dura < 0)
        self._lay(falx * (0.15 if plane == "sagittal" else 0.7), 1.1 * tissue.dura)
        veins = np.exp(-(fine**2 + maps["other"] ** 2) / tissue.veins**2 * 0.7)
        veins = veins * np.exp(-np.abs(dura + 3) / 9) * (dura < 1)
        self._lay(np.clip(1.3 * veins, 0, 1), tissue.vessel)
        self._lay(self._cover(maps["enhancing"] + 0.3 * fine), tissue.vessel * (1 + 0.08 * fine))
