"""What a build asks for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BuildOptions:
    """Settings that decide the bytes of a build, besides the recipe and the source.

    Attributes:
        split: how groups are split, one of :data:`brain_dist.store.split.METHODS`.
        fractions: shares of train, val and test.
        seed: seed of the split and of the order in the shards.
        max_side: larger images are reduced to this many pixels on the longer side; None keeps the bytes.
        shard_size: limit of a shard, see :func:`brain_dist.store.tar.parse_shard_size`.
        skip_bad: leave damaged images out instead of stopping.
        folds: number of folds of the split kfold, or ``published``.
        test_on: the test dataset of the split leave-one-out.
    """

    split: str = "grouped"
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    seed: int = 0
    max_side: int | None = None
    shard_size: str = "64MB"
    skip_bad: bool = False
    folds: int | str | None = None
    test_on: str | None = None
