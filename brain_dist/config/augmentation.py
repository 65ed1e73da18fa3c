"""The section ``augment`` of a run's configuration; see :mod:`brain_dist.config.sections`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from brain_dist.config.checks import Fraction, Probability, Range, Section, require


@dataclass(frozen=True)
class AugmentConfig(Section):
    """Random augmentation of training images.

    Args:
        scale: Smallest and largest area of the random crop as a fraction of the image, or of the box around the head
            with `data.head_crop`; both in (0, 1].
        ratio: Smallest and largest aspect ratio of the random crop relative to the image; both in [0.01, 100].
        flip: Probability of a left-right flip, in [0, 1].
        rotate: Largest rotation in either direction in degrees, in [0, 180].
        brightness: Largest relative change of brightness, in [0, 1). 0.2 means a factor of 0.8 to 1.2.
        contrast: Largest relative change of contrast about mid-gray, in [0, 1).
        erase: Probability of blacking out a random box (random erasing), in [0, 1].
        tumour_erased: Share of the visits of images with a known tumour, in [0, 1], in which it is covered by tissue of
            the other side of the head (at the midline, of another place in it) and the label becomes `notumor`. Needs
            shards with boxes or masks of tumours. Tumours of nearly half the head are left as they are.
        tumour_pasted: Share of the visits of tumour-free images, in [0, 1], in which they get a tumour, with its label,
            of a training image of another collection. Needs shards with boxes or masks of tumours.
        tissue_pasted: Share of the other visits of both, in [0, 1], in which tumour-free tissue of another collection
            is set in and the label stays. Use it with the two above: then traces of pasting do not tell classes apart.
        curves: Probability of a random rising curve of intensity, in [0, 1].
        resolution: Probability of a loss of resolution by a factor of 1.2 to 3, in [0, 1].
        blur: Probability of a Gaussian blur of 0.4 to 1.2 pixels of the input, in [0, 1].
        bias: Probability of a bias field, a smooth change of brightness over the image, in [0, 1].
        noise: Probability of Gaussian noise with a standard deviation of 2 to 15 gray levels, in [0, 1].
        jpeg: Probability of the loss of a JPEG of quality 20 to 80, in [0, 1].
        rim: Probability that the rim of the head becomes black, as a rough removal of the skull does it, in [0, 1]. The
            rim is 3 to 8 % of the image's side wide.
        network: Probability that the image is mixed with the output of a small random convolutional network (GIN), in
            [0, 1]: other intensities and another texture of the same shapes.
        mixup: Parameter alpha of mixup's Beta distribution, in [0, 100]; 0 turns mixup off.
        cutmix: Parameter alpha of CutMix's Beta distribution, in [0, 100]; 0 turns CutMix off. With both on, a pair of
            images gets either with equal probability.
    """

    scale: Annotated[tuple[float, float], Range(0, 1, "(]")] = (0.7, 1.0)
    ratio: Annotated[tuple[float, float], Range(0.01, 100, "[]")] = (0.8, 1.25)
    flip: Probability = 0.5
    rotate: Annotated[float, Range(0, 180, "[]")] = 15.0
    brightness: Fraction = 0.2
    contrast: Fraction = 0.2
    erase: Probability = 0.0
    tumour_erased: Probability = 0.0
    tumour_pasted: Probability = 0.0
    tissue_pasted: Probability = 0.0
    curves: Probability = 0.0
    resolution: Probability = 0.0
    blur: Probability = 0.0
    bias: Probability = 0.0
    noise: Probability = 0.0
    jpeg: Probability = 0.0
    rim: Probability = 0.0
    network: Probability = 0.0
    mixup: Annotated[float, Range(0, 100, "[]")] = 0.0
    cutmix: Annotated[float, Range(0, 100, "[]")] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            require(low <= high, f"augment.{name}", (low, high), "must be [smallest, largest]")
