"""Classes of unequal size made equal: by the loss's weights, or by how often an epoch visits each sample.

Both are pure functions of labels, seed and epoch, so they do not depend on the number of ranks. A *draw* names one
visit of a row: the row itself on its first visit in an epoch, and a number of its own on each further one, so that
whatever is drawn at random for it (its place in the order, its crop) differs from visit to visit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from brain_dist.stream import counter

Rows = npt.NDArray[np.int64]
_VISIT = np.int64(1) << 40  # no dataset has as many rows


def row_of(draws: Rows) -> Rows:
    """The rows that ``draws`` visit."""
    return draws % _VISIT


def class_weights(label: Rows) -> npt.NDArray[np.float64]:
    """Weight of each sample [N], ``N / (K · samples of its class)`` for K classes that occur; their mean is 1.

    (The balanced heuristic of King & Zeng, Political Analysis 2001, as in scikit-learn.)
    """
    _, inverse, count = np.unique(label, return_inverse=True, return_counts=True)
    return (len(label) / (len(count) * count))[inverse]


def balanced(rows: Rows, label: Rows, *, seed: int, epoch: int) -> tuple[Rows, Rows]:
    """An epoch of as many visits as there are ``rows``, in which all classes have equally many, or one more.

    Inside a class the visits are spread as evenly as they can be: a small class is gone through whole a few times, of a
    large one some samples are left out, other ones in each epoch.

    Args:
        rows: int64 [N], the rows of the training split.
        label: int64 [N], the class of each.

    Returns:
        draws int64 [N], sorted, and for each its index into ``rows``, int64 [N].
    """
    classes, inverse, count = np.unique(label, return_inverse=True, return_counts=True)
    share = np.full(len(classes), len(rows) // len(classes))
    # what does not divide goes to other classes in each epoch
    share[np.argsort(counter.bits(seed, "balance.class", epoch, classes))[: len(rows) % len(classes)]] += 1
    visits = (share // count)[inverse]
    key = counter.bits(seed, "balance.row", epoch, rows)
    for of_class in range(len(classes)):
        members = np.flatnonzero(inverse == of_class)
        visits[members[np.argsort(key[members], kind="stable")][: share[of_class] % count[of_class]]] += 1
    at = np.repeat(np.arange(len(rows)), visits)
    visit = np.arange(len(at)) - np.repeat(np.cumsum(visits) - visits, visits)
    return rows[at] + visit * _VISIT, at
