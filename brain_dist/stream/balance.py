"""Class balancing: by weights in the loss, or by how often an epoch visits each sample.

Both are pure functions of labels, seed and epoch, so they do not depend on the number of ranks. A *visit* is an integer
that identifies one use of a row in an epoch: the row number itself for the first use, another number for each further
one. Random draws (place in the order, crop, …) are made for the visit, so each use of a row is augmented differently.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from brain_dist.common import counter

Rows = npt.NDArray[np.int64]
_NEXT_VISIT = np.int64(1) << 40  # more than any dataset has rows


def row_of(visits: Rows) -> Rows:
    """Row numbers of ``visits``."""
    return visits % _NEXT_VISIT


def class_weights(label: Rows) -> npt.NDArray[np.float64]:
    """Weight of each sample [N]: ``N / (K · samples of its class)`` for the K classes that occur; the mean is 1.

    (The balanced heuristic of King & Zeng, Political Analysis 2001, as in scikit-learn.)
    """
    _, inverse, count = np.unique(label, return_inverse=True, return_counts=True)
    return (len(label) / (len(count) * count))[inverse]


def balanced_visits(rows: Rows, label: Rows, *, seed: int, epoch: int) -> tuple[Rows, Rows]:
    """The visits of an epoch of ``len(rows)`` in which class sizes differ by one at most.

    Visits are spread evenly inside a class: an epoch goes through a small class several times, and leaves out some
    samples of a large class, different ones in each epoch.

    Args:
        rows: int64 [N], rows of the training split.
        label: int64 [N], class of each row.
        seed: seed of the run.
        epoch: epoch number.

    Returns:
        visits int64 [N], sorted by row, and the index of each visit into ``rows``, int64 [N].
    """
    classes, inverse, class_size = np.unique(label, return_inverse=True, return_counts=True)
    share = np.full(len(classes), len(rows) // len(classes))
    # the remainder of the division goes to different classes in each epoch
    share[np.argsort(counter.bits(seed, "balance.class", epoch, classes))[: len(rows) % len(classes)]] += 1
    times = (share // class_size)[inverse]
    key = counter.bits(seed, "balance.row", epoch, rows)
    for i in range(len(classes)):
        members = np.flatnonzero(inverse == i)
        times[members[np.argsort(key[members], kind="stable")][: share[i] % class_size[i]]] += 1
    index = np.repeat(np.arange(len(rows)), times)
    repetition = np.arange(len(index)) - np.repeat(np.cumsum(times) - times, times)
    return rows[index] + repetition * _NEXT_VISIT, index
