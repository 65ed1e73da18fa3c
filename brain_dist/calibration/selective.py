"""Selective prediction: answer only the images that the network is sure about, and leave the others to a person."""

from __future__ import annotations

import numpy as np

from brain_dist.judging.clusters import Statistic

COVERAGES = (1.0, 0.9, 0.8)  # shares of the images that are answered


def _ranked(correct: np.ndarray, confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order [N] by falling confidence, and correctness [N] in it; equal confidences share their mean correctness."""
    order = np.argsort(-confidence, kind="stable")
    _, tie, count = np.unique(-confidence[order], return_inverse=True, return_counts=True)
    return order, (np.bincount(tie, weights=correct[order]) / count)[tie]


def risk_curve(correct: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Share of errors [N] among the 1, 2, … N most confident images, for bool [N] and confidences [N]."""
    _, ranked = _ranked(correct, confidence)
    return 1 - np.cumsum(ranked) / np.arange(1, len(ranked) + 1)


def area_under_risk(correct: np.ndarray, confidence: np.ndarray) -> dict[str, float]:
    """AURC (Geifman & El-Yaniv 2019) of bool [N] and confidences [N]: the mean of :func:`risk_curve`.

    Returns:
        ``aurc``; ``best``, if every error were less confident than every correct image; ``random``, the error rate, if
        confidence said nothing.
    """
    return {
        "aurc": float(risk_curve(correct, confidence).mean()),
        "best": float(risk_curve(correct, np.asarray(correct, dtype=np.float64)).mean()),
        "random": float(1 - np.mean(correct)),
    }


def accuracy_statistic(correct: np.ndarray, confidence: np.ndarray, cluster: np.ndarray) -> Statistic:
    """Accuracy among the most confident images, at each of :data:`COVERAGES`, as a function of clusters' weights.

    Of images of equal confidence, as many as the coverage needs count with the share that is correct among all of them.

    Args:
        correct: bool [N].
        confidence: [N].
        cluster: number of each sample's cluster, int64 [N] in 0..I-1.
    """
    order = np.argsort(-confidence, kind="stable")
    first = np.unique(-confidence[order], return_index=True)[1]  # of each tie, the most confident one first
    right = correct[order].astype(np.float64)

    def statistic(weights: np.ndarray) -> np.ndarray:
        sample = weights[:, cluster[order]]
        size = np.add.reduceat(sample, first, axis=1)  # of each tie in each resample
        hits = np.add.reduceat(sample * right, first, axis=1)
        last_size, last_hits = np.cumsum(size, axis=1), np.cumsum(hits, axis=1)
        columns = []
        for coverage in COVERAGES:
            answered = np.ceil(coverage * last_size[:, -1:] - 1e-9)
            tie = np.argmax(last_size >= answered, axis=1)[:, None]  # in which the last answered image is
            tie_size, tie_hits, reached, total = (
                np.take_along_axis(each, tie, axis=1) for each in (size, hits, last_size, last_hits)
            )
            with np.errstate(invalid="ignore"):  # nothing is left without the only cluster
                columns.append((total - tie_hits * (reached - answered) / tie_size) / answered)
        return np.concatenate(columns, axis=1)

    return statistic
