"""Which split a group goes to: whole groups, every class of every dataset in the asked shares, fixed by the seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brain_dist.collection.spellings import SPLITS
from brain_dist.errors import UserError

METHODS = ("grouped", "original", "kfold", "leave-one-out")
LEFT_OUT = -1  # code of an image that goes to no split
MAX_FOLDS = 100


@dataclass(frozen=True, eq=False)
class Split:
    """Where every image goes: ``codes`` int8 [N], positions in ``names``, or :data:`LEFT_OUT`; ``about`` says how."""

    names: tuple[str, ...]
    codes: np.ndarray
    about: dict[str, Any]


def choose(method: str, groups: np.ndarray, labels: np.ndarray, datasets: Sequence[str], classes: Sequence[str], *,
           published: Sequence[str | None], folds: int | Sequence[int | str | None], test_on: str | None,
           fractions: Sequence[float], seed: int) -> Split:  # fmt: skip
    """Split N images by one of :data:`METHODS`; every class of every dataset is balanced by itself.

    ``groups`` int [N], ``labels`` int [N] (positions in ``classes``), ``datasets`` [N]. ``published`` [N] is what
    original keeps; ``folds`` is what kfold makes: their number, or the published one of each image; ``test_on`` is the
    dataset that leave-one-out tests on; the other two use ``fractions``.
    """
    number: dict[str, int] = {}
    dataset = np.array([number.setdefault(name, len(number)) for name in datasets])
    strata = labels * len(number) + dataset
    names: tuple[str, ...] = SPLITS
    about: dict[str, Any] = {"method": method, "fractions": list(fractions), "seed": seed}
    asked = dict(enumerate(fractions))
    if method == "original":
        return Split(names, original(published, groups, strata, fractions, seed), about)
    if method == "kfold":
        if isinstance(folds, int):
            codes, count, more = kfold(groups, strata, folds, seed), folds, {}
        else:
            codes, count, moved = published_folds(folds, groups, strata, seed)
            more = {"published": True, "moved": moved}
        names = tuple(f"fold{fold}" for fold in range(count))
        asked = dict.fromkeys(range(count), 1 / count)
        about = {"method": method, "folds": count, "seed": seed, **more}
    elif method == "leave-one-out":
        if test_on not in number:
            raise UserError(f"--test-on {test_on} is none of the datasets {', '.join(number)}")
        codes = leave_one_out(groups, strata, dataset == number[test_on], fractions, seed)
        asked = dict(enumerate(without_test(fractions)[:2]))
        about |= {"test_on": test_on}
    else:
        codes = grouped(groups, strata, fractions, seed)
    return Split(names, codes, about | {"off_by": off_by(codes, labels, classes, asked)})


def parse_fractions(text: str) -> tuple[float, float, float]:
    """``"0.7,0.1,0.2"`` → shares of train, val and test, which must add up to 1."""
    try:
        values = tuple(float(piece) for piece in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or not all(0 <= value <= 1 for value in values) or abs(sum(values) - 1) > 1e-6 or not values[0]:
        raise UserError(
            f"--fractions {text!r} must be three numbers for train,val,test that add up to 1, train above 0"
        )
    return values


def parse_folds(text: str) -> int | str:
    """``"5"`` → 5; ``"published"`` as it is. Three folds at least: one to test on, one to validate on, one to train."""
    if text == "published":
        return text
    if not text.isdecimal() or not 3 <= int(text) <= MAX_FOLDS:
        raise UserError(f"--folds {text!r} must be a number from 3 to {MAX_FOLDS}, or published")
    return int(text)


def grouped(groups: np.ndarray, strata: np.ndarray, fractions: Sequence[float], seed: int,
            settled: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
    """Assign whole groups to splits so that each stratum is divided as ``fractions`` asks.

    ``groups`` int [N]: any numbering; ``strata`` int [N]: what to balance (dataset and class). Returns int8 [N],
    positions in ``fractions``. Groups are shuffled by ``seed`` and then placed from large to small (by powers of two,
    so that the seed still decides among groups of like size), each where it brings the strata closest to their targets:
    the greedy rule of scikit-learn's ``StratifiedGroupKFold``, for unequal shares. ``settled`` int [N] names the split
    of some images beforehand, -1 for the others: their group goes where most of its settled images are.
    """
    _, group = np.unique(groups, return_inverse=True)
    _, stratum = np.unique(strata, return_inverse=True)
    content = np.zeros((int(group.max(initial=-1)) + 1, int(stratum.max(initial=-1)) + 1))
    np.add.at(content, (group, stratum), 1)
    # All images together are one more stratum: it decides where the others do not care, so that no split stays empty.
    content = np.column_stack([content, content.sum(axis=1)])
    shares = np.asarray(fractions, dtype=float)
    targets = np.outer(shares, content.sum(axis=0))  # [split, stratum]
    filled = np.zeros_like(targets)
    scale = np.where(targets > 0, targets, np.inf)
    chosen = np.full(len(content), -1, dtype=np.int8)
    if settled is not None:
        votes = np.zeros((len(content), len(shares)), dtype=np.int64)
        known = np.flatnonzero(settled >= 0)
        np.add.at(votes, (group[known], settled[known]), 1)
        fixed = np.flatnonzero(votes.any(axis=1))
        chosen[fixed] = votes[fixed].argmax(axis=1)
        np.add.at(filled, chosen[fixed], content[fixed])
    order = np.random.default_rng([seed, 1]).permutation(len(content))
    size_class = np.floor(np.log2(content[:, -1]))
    order = order[np.argsort(-size_class[order], kind="stable")]
    for item in order[chosen[order] < 0]:
        add = content[item]
        # growth of the squared distance to the targets, relative to them
        cost = (add * (2 * (filled - targets) + add) / scale).sum(axis=1)
        cost[shares == 0] = np.inf
        best = int(cost.argmin())
        chosen[item] = best
        filled[best] += add
    return chosen[group]


def original(
    published: Sequence[str | None], groups: np.ndarray, strata: np.ndarray, fractions: Sequence[float], seed: int
) -> np.ndarray:
    """Keep a published split, leaks and all. Returns int8 [N], positions in :data:`SPLITS`.

    Where the publisher has no validation part and ``fractions`` asks for one, it is taken from the training part, by
    whole groups, in the proportion val / (train + val); the published test part is never touched.
    """
    lacking = sum(value is None for value in published)
    if lacking:
        raise UserError(f"--split original: {lacking} images belong to no published split; use --split grouped")
    result = np.array([SPLITS.index(str(value)) for value in published], dtype=np.int8)
    if fractions[1] > 0 and not (result == 1).any():
        inside = np.flatnonzero(result == 0)
        if inside.size:
            result[inside] = grouped(groups[inside], strata[inside], without_test(fractions), seed)
    return result


def without_test(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Shares of train and val where the test part is given."""
    train, val, _ = fractions
    return train / (train + val), val / (train + val), 0.0


def kfold(groups: np.ndarray, strata: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Whole groups in ``folds`` parts, each with its share of every stratum. Returns int8 [N], numbers of folds."""
    count = len(np.unique(groups))
    if count < folds:
        raise UserError(f"--folds {folds}: there are only {count} groups (patients, or sets of copies); ask for fewer")
    return grouped(groups, strata, [1 / folds] * folds, seed)


def published_folds(
    published: Sequence[int | str | None], groups: np.ndarray, strata: np.ndarray, seed: int
) -> tuple[np.ndarray, int, int]:
    """The folds that a collection was published with.

    Returns int8 [N], numbers of folds from 0; how many folds there are; how many images had to change theirs.

    A group is kept whole: it goes to the fold that most of its images were published in. Images without a fold (of
    another dataset of the recipe) are dealt out so that each fold gets its share of every stratum.
    """
    try:
        found = [None if fold in (None, "") else int(str(fold)) for fold in published]
    except ValueError:
        raise UserError("--folds published: the folds that the collection names are no whole numbers") from None
    numbers = sorted({fold for fold in found if fold is not None})
    if not 3 <= len(numbers) <= MAX_FOLDS:
        raise UserError(f"--folds published: the collection names {len(numbers)} folds; give a number, such as 5")
    place = {number: position for position, number in enumerate(numbers)}
    settled = np.array([-1 if fold is None else place[fold] for fold in found])
    codes = grouped(groups, strata, [1 / len(numbers)] * len(numbers), seed, settled)
    lost = sorted(set(range(len(numbers))) - set(codes[settled == codes].tolist()))
    if lost:
        raise UserError(
            f"--folds published: no group is left for fold {numbers[lost[0]]}, as copies or patients of all its images"
            " are in others; give a number of folds"
        )
    return codes, len(numbers), int(((settled >= 0) & (settled != codes)).sum())


def leave_one_out(
    groups: np.ndarray, strata: np.ndarray, held: np.ndarray, fractions: Sequence[float], seed: int
) -> np.ndarray:
    """Test on all ``held`` images (bool [N]) and on no others. Returns int8 [N], positions in :data:`SPLITS`.

    Other images of a group that touches them go nowhere (:data:`LEFT_OUT`); the rest is divided into train and val.
    """
    result = np.full(len(groups), LEFT_OUT, dtype=np.int8)
    result[held] = SPLITS.index("test")
    rest = np.flatnonzero(~np.isin(groups, np.unique(groups[held])))
    if not rest.size:
        raise UserError("--test-on leaves nothing to train on: every other image shares a group with its images")
    result[rest] = grouped(groups[rest], strata[rest], without_test(fractions), seed)
    return result


def off_by(codes: np.ndarray, labels: np.ndarray, classes: Sequence[str],
           asked: Mapping[int, float]) -> dict[str, float | None]:  # fmt: skip
    """For each class how far its share of a split is from the asked one, at most; None for a class without images.

    ``asked``: code → share; images of other codes do not count.
    """
    found: dict[str, float | None] = {}
    for label, name in enumerate(classes):
        counts = {code: int(((labels == label) & (codes == code)).sum()) for code in asked}
        total = sum(counts.values())
        off = max(abs(counts[code] / max(total, 1) - share) for code, share in asked.items())
        found[name] = round(off, 6) if total else None
    return found
