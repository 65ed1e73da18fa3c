"""How each sample is augmented, as pure functions of (seed, epoch, row).

This module draws the parameters and touches no pixels. The loaders apply them, so the pixels of two loaders, or of CPU
and GPU, can be compared one by one. Crops are whole pixels of the stored image, so that every decoder crops alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from brain_dist.common import counter
from brain_dist.config import AugmentConfig

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Decisions:
    """What to do to each image of a micro-batch, in this order.

    Attributes:
        crop: int32 [B, 4]: x, y, width, height in pixels of the stored image. The crop is resized to the input size.
        affine: float32 [B, 2, 3], flip and rotation as one map from output to input coordinates, both (x, y) in [-1, 1]
            about the centre of the image.
        gain: float32 [B] and
        shift: float32 [B]: a pixel in [0, 1] becomes ``gain * pixel + shift``, clipped to [0, 1].
        erase: float32 [B, 4]: x, y, width, height as fractions of the output; width 0 erases nothing.
    """

    crop: Ints
    affine: Floats
    gain: Floats
    shift: Floats
    erase: Floats

    def part(self, start: int, stop: int) -> Decisions:
        """The decisions of the images from ``start`` to ``stop``, as views."""
        part = slice(start, stop)
        return Decisions(self.crop[part], self.affine[part], self.gain[part], self.shift[part], self.erase[part])


@dataclass(frozen=True)
class Frames:
    """The part of each stored image that is used: int64 arrays over the rows of the index, in pixels.

    Either the whole image or the box around the head (``data.head_crop``).
    """

    x: Rows
    y: Rows
    width: Rows
    height: Rows

    @classmethod
    def of(cls, columns: dict[str, np.ndarray], *, head: bool) -> Frames:
        """Frames of all rows of an index, whose columns are [N]."""
        if head:
            return cls(*(columns[name].astype(np.int64) for name in ("head_x", "head_y", "head_w", "head_h")))
        zero = np.zeros(len(columns["width"]), dtype=np.int64)
        return cls(zero, zero, columns["width"].astype(np.int64), columns["height"].astype(np.int64))


@dataclass(frozen=True)
class _Draw:
    """Uniform random numbers, one per image of a micro-batch: a function of (seed, epoch, visit, purpose)."""

    seed: int
    epoch: int | Rows
    visit: Rows

    def __call__(self, purpose: str, low: float = 0.0, high: float = 1.0) -> npt.NDArray[np.float64]:
        """float64 [B] in [low, high)."""
        return low + (high - low) * counter.uniform(self.seed, f"augment.{purpose}", self.epoch, self.visit)

    def log_uniform(self, purpose: str, low: float, high: float) -> npt.NDArray[np.float64]:
        """float64 [B] in [low, high), uniform in the logarithm."""
        return np.exp(self(purpose, float(np.log(low)), float(np.log(high))))


def decide(
    config: AugmentConfig, frames: Frames, rows: Rows, *, seed: int, epoch: int | Rows, visit: Rows | None = None
) -> Decisions:
    """Augmentation for training, drawn from (seed, epoch, row).

    Args:
        config: ranges and probabilities.
        frames: frames of all rows of the index.
        rows: int64 [B], rows of the micro-batch.
        seed: seed of the run.
        epoch: epoch number; int64 [B] if it differs between the rows.
        visit: int64 [B], draws for these numbers instead of the rows, where an epoch uses a row more than once (see
            :mod:`brain_dist.stream.balance`).
    """
    draw = _Draw(seed, epoch, rows if visit is None else visit)
    gain, shift = _brightness_contrast(config, draw)
    return Decisions(_crop(config, frames, rows, draw), _affine(config, draw), gain, shift, _erase(config, draw))


def no_augmentation(frames: Frames, rows: Rows) -> Decisions:
    """For evaluation: the whole frame, resized."""
    count = len(rows)
    crop = np.stack([frames.x[rows], frames.y[rows], frames.width[rows], frames.height[rows]], axis=1).astype(np.int32)
    ones, zeros = np.ones(count, dtype=np.float32), np.zeros(count, dtype=np.float32)
    return Decisions(crop, _identity(count), ones, zeros, np.zeros((count, 4), dtype=np.float32))


def _crop(config: AugmentConfig, frames: Frames, rows: Rows, draw: _Draw) -> Ints:
    """Random resized crop. A box that does not fit is clamped, not drawn again: the number of draws is constant."""
    area = draw("scale", *config.scale)
    ratio = draw.log_uniform("ratio", *config.ratio)
    frame_width, frame_height = frames.width[rows], frames.height[rows]
    width = np.clip(np.rint(frame_width * np.sqrt(area * ratio)), 1, frame_width).astype(np.int64)
    height = np.clip(np.rint(frame_height * np.sqrt(area / ratio)), 1, frame_height).astype(np.int64)
    x = frames.x[rows] + np.floor(draw("x") * (frame_width - width + 1)).astype(np.int64)
    y = frames.y[rows] + np.floor(draw("y") * (frame_height - height + 1)).astype(np.int64)
    return np.stack([x, y, width, height], axis=1).astype(np.int32)


def _affine(config: AugmentConfig, draw: _Draw) -> Floats:
    """Left-right flip and rotation."""
    angle = np.deg2rad(draw("rotate", -config.rotate, config.rotate))
    mirror = np.where(draw("flip") < config.flip, -1.0, 1.0)
    affine = _identity(len(angle))
    affine[:, 0, 0], affine[:, 0, 1] = mirror * np.cos(angle), -mirror * np.sin(angle)
    affine[:, 1, 0], affine[:, 1, 1] = np.sin(angle), np.cos(angle)
    return affine


def _identity(count: int) -> Floats:
    return np.tile(np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32), (count, 1, 1))


def _brightness_contrast(config: AugmentConfig, draw: _Draw) -> tuple[Floats, Floats]:
    """Gain and shift of a change of contrast about mid-gray, then of brightness."""
    contrast = draw("contrast", 1 - config.contrast, 1 + config.contrast)
    brightness = draw("brightness", 1 - config.brightness, 1 + config.brightness)
    return (brightness * contrast).astype(np.float32), (brightness * 0.5 * (1 - contrast)).astype(np.float32)


def _erase(config: AugmentConfig, draw: _Draw) -> Floats:
    """Random erasing (Zhong et al., AAAI 2020): 2 to 33 % of the area, aspect ratio 0.3 to 3.3, clamped to fit."""
    erased = draw("erase") < config.erase
    area = draw("erase.area", 0.02, 0.33)
    ratio = draw.log_uniform("erase.ratio", 0.3, 1 / 0.3)
    width = np.minimum(np.sqrt(area * ratio), 1.0)
    height = np.minimum(np.sqrt(area / ratio), 1.0)
    box = np.stack([draw("erase.x") * (1 - width), draw("erase.y") * (1 - height), width, height], axis=1)
    return np.where(erased[:, None], box, 0.0).astype(np.float32)


def pixel_boxes(boxes: Floats, size: int) -> Ints:
    """Boxes as fractions of the output (x, y, width, height) → pixels (left, top, right, bottom): int32 [B, 4].

    Rounded here, once, so that all loaders round alike.
    """
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return np.rint(corners * size).astype(np.int32)


@dataclass(frozen=True)
class Mix:
    """Mixup or CutMix of each image with its partner in the global batch.

    Attributes:
        weight: float32 [B], weight of the image's own label; 1: not mixed.
        box: float32 [B, 4]: x, y, width, height, as fractions of the output, of the box that CutMix pastes from the
            partner; width 0 pastes nothing.
        blend: bool [B], True where mixup blends the pixels by ``weight``.
    """

    weight: Floats
    box: Floats
    blend: npt.NDArray[np.bool_]


def mix(config: AugmentConfig, position: Rows, valid: npt.NDArray[np.bool_], *, seed: int, step: int) -> Mix | None:
    """Draw mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019) for a micro-batch.

    Positions 2k and 2k+1 of the global batch are partners, so an even micro-batch always contains both, and the mix
    does not depend on the world size. A pair that contains padding is not mixed.

    Args:
        config: ``mixup`` and ``cutmix``, the parameters of the Beta distributions.
        position: int64 [B], positions in the global batch.
        valid: bool [B], False for padding.
        seed: seed of the run.
        step: optimiser step.

    Returns:
        None if both mixup and CutMix are off.
    """
    if not config.mixup and not config.cutmix:
        return None
    from scipy.special import betaincinv  # inverse of the Beta distribution function: turns a uniform draw into Beta

    pair = position // 2
    mixed = np.repeat(valid[0::2] & valid[1::2], 2)
    use_cutmix = np.zeros(len(pair), dtype=bool)
    if config.cutmix:
        use_cutmix = counter.uniform(seed, "mix.kind", step, pair) < (0.5 if config.mixup else 1.0)
    alpha = np.where(use_cutmix, config.cutmix, config.mixup)
    weight = betaincinv(alpha, alpha, counter.uniform(seed, "mix.weight", step, pair))
    side = np.sqrt(1 - weight)
    x = counter.uniform(seed, "mix.x", step, pair) * (1 - side)
    y = counter.uniform(seed, "mix.y", step, pair) * (1 - side)
    box = np.where((use_cutmix & mixed)[:, None], np.stack([x, y, side, side], axis=1), 0.0)
    return Mix(np.where(mixed, weight, 1.0).astype(np.float32), box.astype(np.float32), ~use_cutmix & mixed)
