"""What a phantom's tumour does to the signal of a slice: body, enhancing ring, oedema, cleft and dural tail."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from brain_dist.phantom.lesions import Lesion, lesion_distance, on_falx
from brain_dist.phantom.solids import coverage

Array = np.ndarray


def add_lesion(
    lesion: Lesion, image: Array, points: Array, maps: Mapping[str, Array], white_matter: Array, pixel: float
) -> Array:
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
    if lesion.oedema_width:
        _add_oedema(lesion, image, border, maps, white_matter)
    signal, weight = _body(lesion, image, border, maps, max(pixel, lesion.border_width))
    if lesion.kind == "meningioma":
        cleft = np.exp(-(((border - 1.0) / 0.9) ** 2)) * np.clip(-dura / 3 - 0.3, 0, 1)
        image += 0.45 * cleft * (0.4 - image)
        _add_dural_tail(lesion, image, points, dura)
    image += weight * (signal - image)
    return border < 0


def _body(lesion: Lesion, image: Array, border: Array, maps: Mapping[str, Array], width: float) -> tuple[Array, Array]:
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


def _add_oedema(lesion: Lesion, image: Array, border: Array, maps: Mapping[str, Array], white_matter: Array) -> None:
    """Darken the white matter around the tumour, along which oedema spreads."""
    extent = border - lesion.oedema_width * (0.25 + 0.75 * white_matter) * (1 + 0.3 * maps["bumps"])
    weight = np.clip(0.5 - extent / 5, 0, 1) * np.clip(-maps["dura"] / 4, 0, 1)
    image += weight * np.clip(white_matter + 0.25, 0, 1) * (0.66 - image) * 0.75


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
