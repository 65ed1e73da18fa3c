"""Set a patch of tissue into an image so that its border cannot be seen. Pure functions of pixels.

Images are float32 [H, W, C] in gray levels, soft shapes float32 [H, W] in [0, 1]. Points are pixels (x, y) from the
outer corner of the first pixel.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

DARK = 0.12  # of an image's 99th percentile: what is darker is air or bone, not tissue
_LARGEST_STEP = 0.5  # of the image's range of tissue, by which one place of a patch is changed more than the others


def gray(image: Floats) -> Floats:
    """The mean over the channels, float32 [H, W]."""
    return image[:, :, 0] if image.shape[2] == 1 else image.mean(axis=2)


def warp(image: Floats, matrix: Matrix, width: int, height: int) -> Floats:
    """Sample an image [H, W, C] or shape [H, W] linearly where ``matrix`` takes the centres of ``width`` × ``height``.

    ``matrix``, float64 [2, 3], maps points of the result to points of the image; beyond its edges the image repeats.
    """
    centred = matrix.copy()
    centred[:, 2] += 0.5 * matrix[:, :2].sum(axis=1) - 0.5  # cv2 counts from the centre of the first pixel
    sampled = cv2.warpAffine(
        image, centred, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )
    return sampled.reshape(height, width, *image.shape[2:]).astype(np.float32, copy=False)


def soft_box(half: tuple[float, float], turn: Matrix, power: float, feather: float) -> Floats:
    """A rounded box: 1 inside, falling smoothly to 0 beyond it.

    Args:
        half: half of its width and height, in pixels of its own.
        turn: float64 [2, 2], rotation and scale from its own pixels to those of the result.
        power: 2 is an ellipse, larger ones are closer to the box.
        feather: width of the border, in pixels of the result.

    Returns:
        float32 [s, s], with the centre of the box in the middle.
    """
    scale = float(np.sqrt(abs(np.linalg.det(turn))))
    u, v = _grid(float(np.hypot(*half)) * scale + feather, turn)
    radius = (np.abs(u / half[0]) ** power + np.abs(v / half[1]) ** power) ** (1 / power)
    beyond = (1 - 1 / np.maximum(radius, 1.0)) * np.hypot(u, v) * scale  # distance from the border, towards the centre
    return _smooth(1 - beyond / feather)


def soft_mask(mask: npt.NDArray[np.bool_], turn: Matrix, margin: float, feather: float) -> Floats:
    """A mask bool [h, w] with a margin, falling smoothly to 0 beyond it; both in pixels of the result.

    ``turn`` and the result are as in :func:`soft_box`.
    """
    height, width = mask.shape
    scale = float(np.sqrt(abs(np.linalg.det(turn))))
    radius = float(np.hypot(width, height)) / 2 * scale + margin + feather
    size = 2 * int(np.ceil(radius)) + 1
    inverse = np.linalg.inv(turn)
    centre = np.array([width / 2 + 1, height / 2 + 1]) - inverse @ (size / 2, size / 2)
    smaller = max(1.0, 1 / scale)  # means instead of single pixels where the mask shrinks
    fine = cv2.blur(np.pad(mask, 1).astype(np.float32), (int(smaller), int(smaller)), borderType=cv2.BORDER_CONSTANT)
    hard = warp(np.asarray(fine, np.float32), np.concatenate([inverse, centre[:, None]], axis=1), size, size) >= 0.5
    hard[size // 2, size // 2] |= not hard.any()  # a lesion smaller than a pixel keeps one
    distance = cv2.distanceTransform((~hard).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return _smooth(1 - (distance - margin) / feather)


def _grid(radius: float, turn: Matrix) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Own coordinates (u, v) of the pixels of a square around the centre, which holds ``radius`` on each side."""
    place = np.arange(-np.ceil(radius), np.ceil(radius) + 1)
    x, y = np.meshgrid(place, place)
    (a, b), (c, d) = np.linalg.inv(turn)
    return a * x + b * y, c * x + d * y


def _smooth(share: npt.NDArray[np.floating]) -> Floats:
    """Smoothstep of values that are clipped to [0, 1]."""
    clipped = np.clip(share, 0, 1)
    return (clipped * clipped * (3 - 2 * clipped)).astype(np.float32)


def dark_level(pixels: Floats) -> float:
    """The gray level of an image float32 [H, W] above which it is tissue."""
    return DARK * _percentile(np.bincount(pixels.astype(np.uint8).ravel(), minlength=256), 99)


def tissue_span(pixels: Floats, dark: float) -> float:
    """Of the pixels float32 [N] brighter than ``dark``: from the 10th to the 90th percentile, at least 1."""
    counts = np.bincount(pixels.astype(np.uint8), minlength=256)
    counts[: int(dark) + 1] = 0
    return max(_percentile(counts, 90) - _percentile(counts, 10), 1.0)


def _percentile(counts: npt.NDArray[np.int64], percent: int) -> float:
    """The gray level up to which ``percent`` of the pixels are, from the number of pixels of each level [256]."""
    return float(np.searchsorted(counts.cumsum(), counts.sum() * percent / 100))


def depth(pixels: Floats, dark: float) -> Floats:
    """How deep each pixel of [H, W] is in the head: pixels to the outside of the convex hull of what is not dark."""
    bright = cv2.blur((pixels > dark).astype(np.float32), (3, 3)) > 0.7
    rows = np.flatnonzero(bright.any(axis=1))
    hull = np.zeros(pixels.shape, dtype=np.uint8)
    if len(rows) > 2:
        # the outermost pixels of each row have the same hull as all, and are few
        first, last = bright[rows].argmax(axis=1), bright.shape[1] - 1 - bright[rows, ::-1].argmax(axis=1)
        points = np.concatenate([np.stack([first, rows], axis=1), np.stack([last, rows], axis=1)]).astype(np.int32)
        cv2.fillConvexPoly(hull, cv2.convexHull(points), 1)
    padded = np.pad(hull, 1)  # the edge of the image is a border of the head, too
    return cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_3)[1:-1, 1:-1].astype(np.float32)


def best_shift(target: Floats, wider: Floats, shape: Floats) -> tuple[int, int]:
    """Where in ``wider`` the part lies that fits best to the surroundings of the shape in ``target``.

    Args:
        target: float32 [h, w].
        wider: float32 [h + 2m, w + 2m], candidates.
        shape: float32 [h, w], the soft shape that will be replaced.

    Returns:
        Left and top of the part, from 0 to 2m.
    """
    border = _border(shape)
    margin = (wider.shape[1] - target.shape[1]) // 2
    if margin == 0 or not border.any():
        return margin, margin
    middle = wider[margin : margin + target.shape[0], margin : margin + target.shape[1]]
    brighter = float(((target - middle) * border).sum() / border.sum())
    top, left = divmod(int(misfit(wider + np.float32(brighter), target, shape).argmin()), 2 * margin + 1)
    return left, top


def misfit(image: Floats, target: Floats, shape: Floats) -> Floats:
    """How badly each part of an image continues the surroundings of a shape: [H - h + 1, W - w + 1].

    The root of the mean squared difference of gray levels along the border of the shape.

    Args:
        image: float32 [H, W].
        target: float32 [h, w], what the shape is in.
        shape: float32 [h, w].
    """
    border = _border(shape)
    squares = cv2.matchTemplate(np.ascontiguousarray(image), np.ascontiguousarray(target), cv2.TM_SQDIFF, mask=border)
    return np.sqrt(np.maximum(squares, 0) / max(float((border**2).sum()), 1e-6)).astype(np.float32)


def share(image: Floats, shape: Floats) -> Floats:
    """How much of a shape [h, w] lies where ``image`` [H, W] is 1, at each place: [H - h + 1, W - w + 1]."""
    inside = cv2.matchTemplate(np.ascontiguousarray(image), shape, cv2.TM_CCORR)
    return np.asarray(inside / max(float(shape.sum()), 1e-6), dtype=np.float32)


def contrast(patch: Floats, shape: Floats) -> float:
    """How much a patch [h, w, C] differs in the shape [h, w] from its own border: root mean square, gray levels."""
    border, levels = _border(shape), gray(patch)
    around = float((levels * border).sum()) / max(float(border.sum()), 1e-6)
    return float(np.sqrt(((levels - around) ** 2 * shape).sum() / max(float(shape.sum()), 1e-6)))


def blend(target: Floats, patch: Floats, shape: Floats, trusted: Floats, gain: float, span: float) -> Floats:
    """Replace the soft shape in ``target`` by ``patch``, whose brightness is fitted to what surrounds the shape.

    The patch is multiplied by ``gain``. Then it gets a smooth field of brightness, so that it has the target's along
    the border of the shape; a membrane as in Poisson image editing (Pérez et al., SIGGRAPH 2003), but made by averaging
    over a wide part of the border, so that noise and fine structures at the border leave no streaks in the patch.

    Args:
        target: float32 [h, w, C].
        patch: float32 [h, w, C].
        shape: float32 [h, w].
        trusted: float32 [h, w], 1 where both are tissue, whose brightness can be compared.
        gain: ratio of the contrasts of the two images.
        span: range of the target's tissue in gray levels, by half of which the field varies at most.
    """
    border = _border(shape) * (trusted + np.float32(1e-3))
    scaled = patch * np.float32(gain)
    width = max(3.0, 0.35 * float(np.sqrt(max(shape.sum(), 1.0))))
    # first the whole patch by the mean, then each place by what is left near it, if any border is near
    difference = target - scaled
    mean = (difference * border[:, :, None]).sum(axis=(0, 1)) / max(float(border.sum()), 1e-6)
    limit = _LARGEST_STEP * span
    left = (difference - mean).clip(-limit, limit) * border[:, :, None]
    weight = cv2.GaussianBlur(border, (0, 0), width, borderType=cv2.BORDER_CONSTANT) + np.float32(1e-4)
    spread = cv2.GaussianBlur(left, (0, 0), width, borderType=cv2.BORDER_CONSTANT).reshape(target.shape)
    field = mean + spread / weight[:, :, None]
    return np.asarray(target + shape[:, :, None] * (scaled + field - target), dtype=np.float32)


def _border(shape: Floats) -> Floats:
    """1 where the shape is half, 0 inside and outside."""
    return (4 * shape * (1 - shape)).astype(np.float32)
