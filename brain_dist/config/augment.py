"""The settings of augmentation."""

from __future__ import annotations

from dataclasses import dataclass

from brain_dist.errors import UserError


@dataclass(frozen=True)
class AugmentConfig:
    """What training may do to an image.

    Args:
        scale: area of the random crop, as a share of the image (or of the head box), smallest and largest.
        ratio: aspect ratio of the random crop relative to the image's own, smallest and largest.
        flip: probability of a left-right flip.
        rotate: largest rotation in degrees, either way.
        brightness: largest relative change of brightness (0.2: 0.8 to 1.2 times).
        contrast: largest relative change of contrast about mid-gray.
        erase: probability of blacking out a random box (random erasing).
        mixup: alpha of the Beta distribution for mixup; 0 is off.
        cutmix: alpha of the Beta distribution for CutMix; 0 is off. With both on, half of the pairs get each.
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
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"augment.scale={list(self.scale)}: needs 0 < smallest ≤ largest ≤ 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"augment.ratio={list(self.ratio)}: needs 0 < smallest ≤ largest")
        for name in ("flip", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name}={getattr(self, name)}: a probability lies between 0 and 1")
        for name in ("brightness", "contrast"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"augment.{name}={getattr(self, name)}: needs 0 ≤ value < 1")
        for name in ("rotate", "mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise UserError(f"augment.{name}={getattr(self, name)}: may not be negative")
