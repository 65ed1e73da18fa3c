"""Which split a group goes to: whole groups, every class of every dataset in the asked shares, fixed by the seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from brain_dist.data.index import SPLITS
from brain_dist.errors import UserError


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


def grouped(groups: np.ndarray, strata: np.ndarray, fractions: Sequence[float], seed: int) -> np.ndarray:
    """Assign whole groups to splits so that each stratum is divided as ``fractions`` asks.

    ``groups`` int [N]: any numbering; ``strata`` int [N]: what to balance (dataset and class). Returns int8 [N],
    positions in :data:`SPLITS`. Groups are shuffled by ``seed`` and then placed from large to small (by powers of two,
    so that the seed still decides among groups of like size), each where it brings the strata closest to their targets:
    the greedy rule of scikit-learn's ``StratifiedGroupKFold``, for unequal shares.
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
    order = np.random.default_rng([seed, 1]).permutation(len(content))
    size_class = np.floor(np.log2(content[:, -1]))
    order = order[np.argsort(-size_class[order], kind="stable")]
    chosen = np.zeros(len(content), dtype=np.int8)
    for item in order:
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
    train, val, _ = fractions
    if val > 0 and not (result == 1).any():
        inside = np.flatnonzero(result == 0)
        if inside.size:
            result[inside] = grouped(
                groups[inside], strata[inside], (train / (train + val), val / (train + val), 0.0), seed
            )
    return result
