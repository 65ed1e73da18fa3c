"""How each sample is augmented: pure functions of (seed, epoch, row), the same on any rank and in any loader.

This module only decides; it touches no pixel. A loader carries the decisions out, which makes pixels of two loaders, or
of CPU and GPU, comparable one by one. Boxes are whole pixels of the stored image, so that every decoder cuts the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from brain_dist.config import AugmentConfig
from brain_dist.stream import counter

Floats = npt.NDArray[np.float32]


Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Decisions:
    """What to do to each image of a batch, in this order.

    Attributes:
        crop: int32 [B, 4], x, y, width, height in pixels of the stored image; then resized to the square input size.
        affine: float32 [B, 2, 3], maps output to input coordinates, both in [-1, 1] about the image's centre (x, y);
            flip and rotation in one resampling.
        gain: float32 [B] and shift: float32 [B]; pixel in [0, 1] becomes ``gain * pixel + shift``, clipped to [0, 1].
        erase: float32 [B, 4], x, y, width, height as shares of the output; width 0 is none.
    """

    crop: Ints
    affine: Floats
    gain: Floats
    shift: Floats
    erase: Floats


@dataclass(frozen=True)
class Frames:
    """The part of each stored image that counts as the image: int64 arrays over rows, in pixels.

    The whole picture, or the box around the head when borders must not speak (``data.head_crop``).
    """

    x: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    width: npt.NDArray[np.int64]
    height: npt.NDArray[np.int64]

    @classmethod
    def of(cls, columns: dict[str, np.ndarray], *, head: bool) -> Frames:
        """Frames of all rows of an index."""
        names = ("head_x", "head_y", "head_w", "head_h")
        if head:
            return cls(*(columns[name].astype(np.int64) for name in names))
        zero = np.zeros(len(columns["width"]), dtype=np.int64)
        return cls(zero, zero, columns["width"].astype(np.int64), columns["height"].astype(np.int64))


def pixel_boxes(boxes: Floats, size: int) -> Ints:
    """Boxes as shares of the output (x, y, width, height) → whole pixels (left, top, right, bottom): int32 [B, 4].

    Rounded here, once, so that no two loaders round differently.
    """
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return np.rint(corners * size).astype(np.int32)


def _identity(count: int) -> Floats:
    return np.tile(np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32), (count, 1, 1))


def plain(frames: Frames, rows: npt.NDArray[np.int64]) -> Decisions:
    """Evaluation: the whole frame, resized; nothing else."""
    count = len(rows)
    crop = np.stack([frames.x[rows], frames.y[rows], frames.width[rows], frames.height[rows]], axis=1).astype(np.int32)
    ones, zeros = np.ones(count, dtype=np.float32), np.zeros(count, dtype=np.float32)
    return Decisions(crop, _identity(count), ones, zeros, np.zeros((count, 4), dtype=np.float32))


def decide(
    config: AugmentConfig,
    frames: Frames,
    rows: npt.NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    visit: npt.NDArray[np.int64] | None = None,
) -> Decisions:
    """Training: draw every decision from (seed, epoch, row).

    Where an epoch visits a row more than once, ``visit`` [B] is drawn for in place of the row: a number for each visit.
    """
    drawn_for = rows if visit is None else visit

    def draw(what: str) -> npt.NDArray[np.float64]:
        return counter.uniform(seed, f"augment.{what}", epoch, drawn_for)

    def between(what: str, low: float, high: float) -> npt.NDArray[np.float64]:
        return low + (high - low) * draw(what)

    # Random resized crop. The box is clamped where it does not fit instead of drawn again: no loop, so no draw count
    # that could differ between implementations.
    area = between("scale", *config.scale)
    ratio = np.exp(between("ratio", float(np.log(config.ratio[0])), float(np.log(config.ratio[1]))))
    full_w, full_h = frames.width[rows], frames.height[rows]
    width = np.clip(np.rint(full_w * np.sqrt(area * ratio)), 1, full_w).astype(np.int64)
    height = np.clip(np.rint(full_h * np.sqrt(area / ratio)), 1, full_h).astype(np.int64)
    x = frames.x[rows] + np.floor(draw("x") * (full_w - width + 1)).astype(np.int64)
    y = frames.y[rows] + np.floor(draw("y") * (full_h - height + 1)).astype(np.int64)
    crop = np.stack([x, y, width, height], axis=1).astype(np.int32)

    angle = np.deg2rad(between("rotate", -config.rotate, config.rotate))
    mirror = np.where(draw("flip") < config.flip, -1.0, 1.0)
    affine = _identity(len(rows))
    affine[:, 0, 0], affine[:, 0, 1] = mirror * np.cos(angle), -mirror * np.sin(angle)
    affine[:, 1, 0], affine[:, 1, 1] = np.sin(angle), np.cos(angle)

    contrast = between("contrast", 1 - config.contrast, 1 + config.contrast)
    brightness = between("brightness", 1 - config.brightness, 1 + config.brightness)
    gain = (brightness * contrast).astype(np.float32)
    shift = (brightness * 0.5 * (1 - contrast)).astype(np.float32)

    # Random erasing (Zhong et al., AAAI 2020): 2 to 33 % of the area, aspect 0.3 to 3.3, clamped to fit.
    erased = draw("erase") < config.erase
    erase_area = between("erase.area", 0.02, 0.33)
    erase_ratio = np.exp(between("erase.ratio", float(np.log(0.3)), float(np.log(1 / 0.3))))
    erase_w = np.minimum(np.sqrt(erase_area * erase_ratio), 1.0)
    erase_h = np.minimum(np.sqrt(erase_area / erase_ratio), 1.0)
    erase = np.stack([draw("erase.x") * (1 - erase_w), draw("erase.y") * (1 - erase_h), erase_w, erase_h], axis=1)
    return Decisions(crop, affine, gain, shift, np.where(erased[:, None], erase, 0.0).astype(np.float32))


@dataclass(frozen=True)
class Mix:
    """Mixup or CutMix of each image with its neighbour in the global batch.

    Attributes:
        weight: float32 [B], share of the image's own label (1: not mixed).
        box: float32 [B, 4], x, y, width, height as shares of the output that CutMix takes from the partner; width 0:
        none. blend: bool [B], True where the pixels are blended by ``weight`` (mixup).
    """

    weight: Floats
    box: Floats
    blend: npt.NDArray[np.bool_]


def mix(
    config: AugmentConfig, position: npt.NDArray[np.int64], valid: npt.NDArray[np.bool_], *, seed: int, step: int
) -> Mix | None:
    """Mixing of positions 2k and 2k+1 of the global batch with each other; None when both kinds are off.

    Partners sit side by side, so an even micro-batch always holds both: the mix does not depend on the world size.
    A pair of which one is padding is left alone. (Zhang et al., ICLR 2018; Yun et al., ICCV 2019.)
    """
    if not config.mixup and not config.cutmix:
        return None
    from scipy.special import betaincinv  # the inverse of Beta's distribution function turns a uniform draw into Beta

    pair = position // 2
    whole = valid[0::2] & valid[1::2]
    use_cutmix = np.zeros(len(pair), dtype=bool)
    if config.cutmix:
        use_cutmix = counter.uniform(seed, "mix.kind", step, pair) < (0.5 if config.mixup else 1.0)
    alpha = np.where(use_cutmix, config.cutmix, config.mixup)
    weight = betaincinv(alpha, alpha, counter.uniform(seed, "mix.weight", step, pair))
    side = np.sqrt(1 - weight)
    x = counter.uniform(seed, "mix.x", step, pair) * (1 - side)
    y = counter.uniform(seed, "mix.y", step, pair) * (1 - side)
    on = np.repeat(whole, 2)
    box = np.where((use_cutmix & on)[:, None], np.stack([x, y, side, side], axis=1), 0.0)
    return Mix(np.where(on, weight, 1.0).astype(np.float32), box.astype(np.float32), ~use_cutmix & on)
