"""Options of a build."""

from __future__ import annotations

from dataclasses import dataclass

from brain_dist.collection.pixels import JPEG_QUALITY, Smaller
from brain_dist.errors import UserError

MAX_FOLDS = 100


@dataclass(frozen=True)
class BuildOptions:
    """Settings that decide the bytes of a build, besides the recipe and the source.

    Attributes:
        split: how groups are split: ``grouped``, ``original``, ``kfold``, ``leave-one-out`` or ``test``.
        fractions: shares of train, val and test; always 0, 0, 1 for the split test.
        seed: seed of the split and of the order in the shards.
        max_side: larger images are reduced to this many pixels on the longer side; None keeps the bytes.
        jpeg_quality: quality of the JPEGs among the reduced images.
        shard_size: limit of a shard, see :func:`brain_dist.building.tar.parse_shard_size`.
        skip_bad: leave damaged images out instead of stopping.
        keep_blank: keep images that show nothing, as at the ends of a volume.
        folds: number of folds of the split kfold, or ``published``.
        test_on: the test dataset of the split leave-one-out.
        patients_from: version of the shards whose patients images get through copies, or None.
    """

    split: str = "grouped"
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    seed: int = 0
    max_side: int | None = None
    jpeg_quality: int = JPEG_QUALITY
    shard_size: str = "64MB"
    skip_bad: bool = False
    keep_blank: bool = False
    folds: int | str | None = None
    test_on: str | None = None
    patients_from: str | None = None

    def __post_init__(self) -> None:
        if self.split == "test":
            object.__setattr__(self, "fractions", (0.0, 0.0, 1.0))

    @property
    def smaller(self) -> Smaller | None:
        """How large images are made smaller."""
        return None if self.max_side is None else Smaller(self.max_side, self.jpeg_quality)


def parse_fractions(text: str) -> tuple[float, float, float]:
    """``"0.7,0.1,0.2"`` → shares of train, val and test.

    Raises:
        UserError: not three shares that sum to 1, or no training share.
    """
    try:
        values = tuple(float(piece) for piece in text.split(","))
    except ValueError:
        values = ()
    if values == (0, 0, 1):
        raise UserError(f"--fractions {text} leaves nothing to train on; use --split test for a pure test set")
    if len(values) != 3 or not all(0 <= value <= 1 for value in values) or abs(sum(values) - 1) > 1e-6 or not values[0]:
        raise UserError(f"--fractions {text!r} must be three numbers for train,val,test that sum to 1, with train > 0")
    return values


def parse_folds(text: str) -> int | str:
    """``"5"`` → 5; ``"published"`` is returned unchanged. Three folds are needed for training, validation and test.

    Raises:
        UserError: anything else.
    """
    if text == "published":
        return text
    if not text.isdecimal() or not 3 <= int(text) <= MAX_FOLDS:
        raise UserError(f"--folds {text!r} must be a number from 3 to {MAX_FOLDS}, or published")
    return int(text)
