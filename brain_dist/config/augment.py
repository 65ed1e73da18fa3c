"""The settings of augmentation."""

from __future__ import annotations

from dataclasses import dataclass

from brain_dist.config.checks import require


@dataclass(frozen=True)
class AugmentConfig:
    """Random augmentation of training images.

    Args:
        scale: Smallest and largest area of the random crop as a fraction of the image, or of the box around the head
            with `data.head_crop`; 0 < smallest ≤ largest ≤ 1.
        ratio: Smallest and largest aspect ratio of the random crop relative to the image; 0 < smallest ≤ largest.
        flip: Probability of a left-right flip, in [0, 1].
        rotate: Largest rotation in either direction in degrees, ≥ 0.
        brightness: Largest relative change of brightness, in [0, 1). 0.2 means a factor of 0.8 to 1.2.
        contrast: Largest relative change of contrast about mid-gray, in [0, 1).
        erase: Probability of blacking out a random box (random erasing), in [0, 1].
        mixup: Parameter alpha of mixup's Beta distribution, ≥ 0; 0 turns mixup off.
        cutmix: Parameter alpha of CutMix's Beta distribution, ≥ 0; 0 turns CutMix off. With both on, a pair of images
            gets either with equal probability.
    """

    scale: tuple[float, float] = (0.7, 1.0)
    ratio: tuple[float, float] = (0.8, 1.25)
    flip: float = 0.5
    rotate: float = 15.0
    brightness: float = 0.2
    contrast: float = 0.2
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.scale
        require(0 < low <= high <= 1, "augment.scale", self.scale, "must satisfy 0 < smallest ≤ largest ≤ 1")
        low, high = self.ratio
        require(0 < low <= high, "augment.ratio", self.ratio, "must satisfy 0 < smallest ≤ largest")
        for name in ("flip", "erase"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"augment.{name}", value, "must be in [0, 1]")
        for name in ("brightness", "contrast"):
            value = getattr(self, name)
            require(0 <= value < 1, f"augment.{name}", value, "must be in [0, 1)")
        for name in ("rotate", "mixup", "cutmix"):
            value = getattr(self, name)
            require(value >= 0, f"augment.{name}", value, "must be ≥ 0")
