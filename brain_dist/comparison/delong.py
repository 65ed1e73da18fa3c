"""Tests of the difference of two AUCs: DeLong et al. 1988, and Obuchowski 1997 for images in clusters.

The placement of a positive is the share of negatives with a lower score, that of a negative the share of positives with
a higher one; ties count half. Both average to the AUC, and their spread gives its variance. With clusters of one image,
Obuchowski's variance is DeLong's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from brain_dist.judging.clusters import CONFIDENCE, FEWEST_CLUSTERS
from brain_dist.judging.refusal import Refusal


def placements(score: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Placement of each sample [N].

    Args:
        score: scores [N].
        positive: bool [N].
    """
    from scipy.stats import rankdata

    placement = np.empty(len(score))
    ranks = rankdata(score)
    m, n = np.count_nonzero(positive), np.count_nonzero(~positive)
    placement[positive] = (ranks[positive] - rankdata(score[positive])) / n
    placement[~positive] = 1 - (ranks[~positive] - rankdata(score[~positive])) / m
    return placement


def auc_covariance(placement: np.ndarray, positive: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Covariance [R, R] of the AUCs of R scores.

    Args:
        placement: placements [R, N].
        positive: bool [N].
        cluster: number of each sample's cluster, int64 [N] in 0..I-1.
    """
    clusters = int(cluster.max()) + 1
    m, n = np.count_nonzero(positive), np.count_nonzero(~positive)
    deviation = placement - placement[:, positive].mean(axis=1, keepdims=True)
    x, y = (
        np.stack([np.bincount(cluster[part], weights=row[part], minlength=clusters) for row in deviation])
        for part in (positive, ~positive)
    )
    with_positive, with_negative = (len(np.unique(cluster[part])) for part in (positive, ~positive))
    s10 = with_positive / ((with_positive - 1) * m) * (x @ x.T)
    s01 = with_negative / ((with_negative - 1) * n) * (y @ y.T)
    s11 = clusters / (clusters - 1) * (x @ y.T)
    return s10 / m + s01 / n + (s11 + s11.T) / (m * n)


def auc_test(scores: Sequence[np.ndarray], positive: np.ndarray, cluster: np.ndarray) -> dict[str, Any]:
    """Compare the AUCs of two models for one class.

    Args:
        scores: for each of two models the scores [S, N] of its S runs; its AUC is the mean over them.
        positive: bool [N].
        cluster: number of each sample's cluster, int64 [N] in 0..I-1; ``arange(N)`` for independent images.

    Returns:
        ``auc`` of both; ``difference`` with its ``interval`` (95 %, normal); ``z``; ``p``.

    Raises:
        Refusal: fewer than two positives or negatives, fewer than ten clusters with positives or with negatives, or the
            difference has no variance.
    """
    require_both(positive, cluster)
    placement = np.stack([np.mean([placements(run, positive) for run in model], axis=0) for model in scores])
    auc = placement[:, positive].mean(axis=1)
    covariance = auc_covariance(placement, positive, cluster)
    return _normal_test(auc, covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])


def macro_auc_test(scores: Sequence[np.ndarray], label: np.ndarray, cluster: np.ndarray) -> dict[str, Any]:
    """Compare the macro AUCs of two models, one class against the rest.

    The influence of a sample on an AUC is its placement's deviation, divided by the number of samples of its side. The
    influences are averaged over the classes and summed in clusters; the variance is that of the sums.

    Args:
        scores: for each of two models the probabilities [S, N, K] of its S runs.
        label: true classes, int64 [N].
        cluster: number of each sample's cluster, int64 [N] in 0..I-1.

    Returns:
        As :func:`auc_test`.

    Raises:
        Refusal: as :func:`auc_test`, for one of the classes of ``label``.
    """
    present = np.unique(label)
    if len(present) < 2:
        raise Refusal("images of one class only")
    auc, influence = np.zeros(2), np.zeros((2, len(label)))
    for c in present:
        positive = label == c
        require_both(positive, cluster)
        side = np.where(positive, np.count_nonzero(positive), np.count_nonzero(~positive))
        for index, model in enumerate(scores):
            placement = np.mean([placements(run[:, c], positive) for run in model], axis=0)
            area = placement[positive].mean()
            auc[index] += area / len(present)
            influence[index] += (placement - area) / side / len(present)
    sums = np.bincount(cluster, weights=influence[0] - influence[1])
    return _normal_test(auc, len(sums) / (len(sums) - 1) * float(sums @ sums))


def require_both(positive: np.ndarray, cluster: np.ndarray) -> None:
    """Check that a class, bool [N], and its rest have enough samples and clusters (numbers [N]) for a variance.

    Raises:
        Refusal: they have not.
    """
    for name, part in (("of this class", positive), ("of other classes", ~positive)):
        images, groups = np.count_nonzero(part), len(np.unique(cluster[part]))
        if images < 2:
            raise Refusal(f"{images} images {name}: the variance is undefined with fewer than 2")
        if groups < FEWEST_CLUSTERS:
            raise Refusal(f"{groups} groups {name}: fewer than {FEWEST_CLUSTERS} say too little about others")


def _normal_test(auc: np.ndarray, variance: float) -> dict[str, Any]:
    """The test of the difference of two AUCs [2]."""
    from scipy.stats import norm

    if variance <= 1e-18:
        raise Refusal("the difference has no variance: both order the images alike")
    difference, error = float(auc[0] - auc[1]), float(np.sqrt(variance))
    half = float(norm.ppf((1 + CONFIDENCE) / 2)) * error
    return {
        "auc": [float(area) for area in auc],
        "difference": difference,
        "interval": [difference - half, difference + half],
        "z": difference / error,
        "p": float(2 * norm.sf(abs(difference) / error)),
    }
