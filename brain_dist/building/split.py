"""Assign groups to splits: groups stay whole, every class of every dataset is balanced, the seed decides the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from brain_dist.collection.records import Record
from brain_dist.collection.spellings import SPLITS
from brain_dist.errors import UserError
from brain_dist.store.options import MAX_FOLDS, BuildOptions

LEFT_OUT = -1  # code of an image that is in no split


class Split(NamedTuple):
    """The split of N images.

    Attributes:
        names: names of the splits.
        codes: int8 [N], positions in ``names``, or :data:`LEFT_OUT`.
        description: the manifest's entry.
        needed: positions in ``names`` of the splits that need images of every class.
    """

    names: tuple[str, ...]
    codes: np.ndarray
    description: dict[str, Any]
    needed: list[int]


def split_images(records: Sequence[Record], groups: np.ndarray, classes: Sequence[str], options: BuildOptions) -> Split:
    """Split N images by ``options.split``; every class of every dataset is balanced by itself.

    Args:
        records: label, dataset, and published split and fold of each image.
        groups: int [N], any numbering.
        classes: class names.
        options: method, shares and seed.

    Raises:
        UserError: the images cannot be split as requested.
    """
    labels = np.array([record.label for record in records])
    numbers: dict[str, int] = {}
    dataset = np.array([numbers.setdefault(record.dataset, len(numbers)) for record in records])
    strata = labels * len(numbers) + dataset
    fractions, seed = options.fractions, options.seed
    names, shares = SPLITS, dict(enumerate(fractions))
    description: dict[str, Any] = {"method": options.split, "fractions": list(fractions), "seed": seed}
    if options.split == "original":
        published = [record.published for record in records]
        codes = original(published, groups, strata, fractions, seed)
        shares = dict(enumerate(fractions[:2])) if "train" in published and "val" not in published else {}
    elif options.split == "kfold" and options.folds == "published":
        published_folds = [record.attributes.get("fold") for record in records]
        codes, folds, moved = keep_folds(published_folds, groups, strata, seed)
        description = {"method": "kfold", "folds": folds, "seed": seed, "published": True, "moved": moved}
    elif options.split == "kfold":
        folds = int(options.folds or 0)
        codes = kfold(groups, strata, folds, seed)
        description = {"method": "kfold", "folds": folds, "seed": seed}
    elif options.split == "leave-one-out":
        if options.test_on not in numbers:
            raise UserError(f"--test-on {options.test_on} is not one of the datasets {', '.join(numbers)}")
        if len(numbers) == 1:
            raise UserError(f"--test-on {options.test_on}: all images belong to it; use --split test")
        codes = leave_one_out(groups, strata, dataset == numbers[options.test_on], fractions, seed)
        shares = dict(enumerate(without_test(fractions)[:2]))
        description["test_on"] = options.test_on
    elif options.split == "test":
        codes = np.full(len(groups), SPLITS.index("test"), dtype=np.int8)
    else:
        codes = grouped(groups, strata, fractions, seed)
    if options.split == "kfold":
        names = tuple(f"fold{fold}" for fold in range(folds))
        shares = dict.fromkeys(range(folds), 1 / folds)
    needed = [code for code, share in shares.items() if share > 0]
    if options.folds != "published":
        rows = np.flatnonzero(np.isin(codes, needed))
        codes[rows] = with_all_classes(codes[rows], groups[rows], labels[rows], needed)
    if options.split != "original":
        description["off_by"] = share_deviation(codes, labels, classes, shares)
    return Split(names, codes, description, needed)


def grouped(
    groups: np.ndarray, strata: np.ndarray, fractions: Sequence[float], seed: int, fixed: np.ndarray | None = None
) -> np.ndarray:
    """Assign whole groups to splits so that each stratum is divided by ``fractions``.

    Groups are shuffled by ``seed`` and then placed from large to small (by powers of two, so that the seed decides
    among groups of similar size), each where it brings the strata closest to their targets. This is the greedy rule of
    scikit-learn's ``StratifiedGroupKFold``, extended to unequal shares.

    Args:
        groups: int [N], any numbering.
        strata: int [N], what to balance (dataset and class).
        fractions: share of each split.
        seed: seed of the order.
        fixed: int [N], the split of images that have one already, -1 for the others. Their group goes where most of its
            fixed images are.

    Returns:
        int8 [N], positions in ``fractions``.
    """
    group = np.unique(groups, return_inverse=True)[1]
    stratum = np.unique(strata, return_inverse=True)[1]
    content = np.zeros((int(group.max(initial=-1)) + 1, int(stratum.max(initial=-1)) + 1))
    np.add.at(content, (group, stratum), 1)
    # One more stratum counts all images. It decides among splits that are equal for the others: no split stays empty
    content = np.column_stack([content, content.sum(axis=1)])
    shares = np.asarray(fractions, dtype=float)
    targets = np.outer(shares, content.sum(axis=0))  # [split, stratum]
    scale = np.where(targets > 0, targets, np.inf)
    split_of_group = np.full(len(content), -1, dtype=np.int8)
    if fixed is not None:
        votes = np.zeros((len(content), len(shares)), dtype=np.int64)
        np.add.at(votes, (group[fixed >= 0], fixed[fixed >= 0]), 1)
        split_of_group[votes.any(axis=1)] = votes.argmax(axis=1)[votes.any(axis=1)]
    placed = np.flatnonzero(split_of_group >= 0)
    filled = np.zeros_like(targets)
    np.add.at(filled, split_of_group[placed], content[placed])
    order = np.random.default_rng([seed, 1]).permutation(len(content))
    for number in order[np.argsort(-np.floor(np.log2(content[order, -1])), kind="stable")]:
        if split_of_group[number] >= 0:
            continue
        added = content[number]
        # Growth of the squared distance to the targets, relative to them
        cost = (added * (2 * (filled - targets) + added) / scale).sum(axis=1)
        cost[shares == 0] = np.inf
        best = int(cost.argmin())
        split_of_group[number] = best
        filled[best] += added
    return split_of_group[group]


def with_all_classes(codes: np.ndarray, groups: np.ndarray, labels: np.ndarray, splits: Sequence[int]) -> np.ndarray:
    """Move a group to each split that lacks a class, if another split has several groups of that class.

    The smallest group of the split with the most groups of the class is moved, unless that split would then lack a
    class. Most collections are unchanged: only small ones have too few groups for the shares.

    Args:
        codes: int [N], the split of each image.
        groups: int [N], any numbering.
        labels: int [N].
        splits: the splits that need images of every class.

    Returns:
        int8 [N].
    """
    codes = codes.copy()
    for label in np.unique(labels):
        for split in splits:
            own = labels == label
            if (own & (codes == split)).any():
                continue
            count = {home: len(np.unique(groups[own & (codes == home)])) for home in splits}
            candidates = []
            for group in np.unique(groups[own]):
                inside = groups == group
                home = int(codes[inside][0])
                others = labels[(codes == home) & ~inside]
                if np.isin(labels[inside], others).all():
                    candidates.append((-count[home], int(inside.sum()), int(group)))
            if candidates:
                codes[groups == min(candidates)[2]] = split
    return codes


def original(
    published: Sequence[str | None], groups: np.ndarray, strata: np.ndarray, fractions: Sequence[float], seed: int
) -> np.ndarray:
    """Keep the published split, including its leaks.

    If there is no published validation split and ``fractions`` asks for one, it is taken from the training split, by
    whole groups, with the share val / (train + val). The published test split is never changed.

    Returns:
        int8 [N], positions in :data:`SPLITS`.

    Raises:
        UserError: an image has no published split.
    """
    missing = sum(value is None for value in published)
    if missing:
        raise UserError(f"--split original: {missing} images belong to no published split; use --split grouped")
    codes = np.array([SPLITS.index(str(value)) for value in published], dtype=np.int8)
    train = np.flatnonzero(codes == 0)
    if fractions[1] > 0 and not (codes == 1).any() and train.size:
        codes[train] = grouped(groups[train], strata[train], without_test(fractions), seed)
    return codes


def without_test(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Shares of train and val if the test split is given."""
    train, val, _ = fractions
    return train / (train + val), val / (train + val), 0.0


def kfold(groups: np.ndarray, strata: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Assign whole groups to folds, each with an equal share of every stratum.

    Returns:
        int8 [N], numbers of folds.

    Raises:
        UserError: there are fewer groups than folds.
    """
    count = len(np.unique(groups))
    if count < folds:
        raise UserError(
            f"--folds {folds}: there are only {count} groups (patients, or sets of copies); use fewer folds"
        )
    return grouped(groups, strata, [1 / folds] * folds, seed)


def keep_folds(
    published: Sequence[int | str | None], groups: np.ndarray, strata: np.ndarray, seed: int
) -> tuple[np.ndarray, int, int]:
    """Keep the published folds, but whole groups: a group goes to the fold of most of its images.

    Images without a published fold (of another dataset of the recipe) are distributed so that each fold has its share
    of every stratum.

    Returns:
        Numbers of folds from 0, int8 [N]; how many folds there are; how many images are not in their published fold.

    Raises:
        UserError: the published folds are unusable.
    """
    try:
        folds = [None if fold in (None, "") else int(str(fold)) for fold in published]
    except ValueError:
        raise UserError("--folds published: the published folds are not integers; set a number of folds") from None
    numbers = sorted({fold for fold in folds if fold is not None})
    if not 3 <= len(numbers) <= MAX_FOLDS:
        raise UserError(f"--folds published: the collection has {len(numbers)} folds; set a number, such as 5")
    code_of = {number: code for code, number in enumerate(numbers)}
    fixed = np.array([-1 if fold is None else code_of[fold] for fold in folds])
    codes = grouped(groups, strata, [1 / len(numbers)] * len(numbers), seed, fixed)
    lost = sorted(set(range(len(numbers))) - set(codes[fixed == codes].tolist()))
    if lost:
        raise UserError(
            f"--folds published: fold {numbers[lost[0]]} keeps no image, as all its images have copies or patients in"
            " other folds; set a number of folds"
        )
    return codes, len(numbers), int(((fixed >= 0) & (fixed != codes)).sum())


def leave_one_out(
    groups: np.ndarray, strata: np.ndarray, test: np.ndarray, fractions: Sequence[float], seed: int
) -> np.ndarray:
    """Test on the images of one dataset. Other images that share a group with them are left out.

    Args:
        groups: int [N].
        strata: int [N].
        test: bool [N], the images to test on.
        fractions: shares of train, val and test; the test share is ignored.
        seed: seed of the split into train and val.

    Returns:
        int8 [N], positions in :data:`SPLITS`, or :data:`LEFT_OUT`.

    Raises:
        UserError: no image is left to train on.
    """
    codes = np.full(len(groups), LEFT_OUT, dtype=np.int8)
    codes[test] = SPLITS.index("test")
    others = np.flatnonzero(~np.isin(groups, np.unique(groups[test])))
    if not others.size:
        raise UserError("--test-on leaves nothing to train on: every other image shares a group with its images")
    codes[others] = grouped(groups[others], strata[others], without_test(fractions), seed)
    return codes


def share_deviation(
    codes: np.ndarray, labels: np.ndarray, classes: Sequence[str], shares: Mapping[int, float]
) -> dict[str, float | None]:
    """For each class the largest difference between its actual and its requested share of a split.

    Args:
        codes: int [N], the split of each image. Images of splits that are not in ``shares`` do not count.
        labels: int [N].
        classes: class names.
        shares: code of a split → requested share.

    Returns:
        Class → difference; None if it has no images.
    """
    deviation: dict[str, float | None] = {}
    for label, name in enumerate(classes):
        counts = {code: int(((labels == label) & (codes == code)).sum()) for code in shares}
        total = sum(counts.values())
        largest = max(abs(counts[code] / max(total, 1) - share) for code, share in shares.items())
        deviation[name] = round(largest, 6) if total else None
    return deviation
