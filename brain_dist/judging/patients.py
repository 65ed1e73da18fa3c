"""Results per patient: the slices of a patient give one answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from brain_dist.judging.metrics import evaluate_predictions
from brain_dist.judging.predictions import Predictions

RULES = {
    "majority": "the class that most slices are predicted as; of equally many, the one of larger mean probability",
    "mean": "the class of the largest mean probability over the slices",
}


def patient_names(dataset: np.ndarray, patient: np.ndarray) -> list[str | None]:
    """``DATASET/PATIENT`` of each image [N]: collections number their patients independently. None if not known."""
    return [None if p is None else f"{d}/{p}" for d, p in zip(dataset, patient, strict=True)]


def patient_results(predictions: Predictions) -> dict[str, Any] | None:
    """Metrics of patients instead of images; None if no image has a patient.

    A patient is known by its identifier within its dataset. Patients whose slices have several true classes have no
    answer that could be right, and are left out. The score of a class, from which its AUC is computed, is its share of
    the votes, or its mean probability.

    Returns:
        ``patients``; ``mixed`` (patients left out); ``without`` (images without a patient) and ``missing`` (classes of
        which no patient is known); for each of :data:`RULES` the metrics of
        :func:`~brain_dist.judging.metrics.evaluate_predictions`, whose ``accuracy_interval`` is
        Wilson's over patients.
    """
    names = patient_names(predictions.dataset, predictions.patient)
    known = np.array([name is not None for name in names])
    if not known.any():
        return None
    named = [name for name in names if name is not None]
    _, patient, size = np.unique(named, return_inverse=True, return_counts=True)
    label, prob = predictions.label[known], predictions.prob[known].astype(np.float64)
    k = prob.shape[1]

    def mean(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(patient, weights=values[:, c]) for c in range(k)], axis=1) / size[:, None]

    truth, mean_prob, votes = mean(np.eye(k)[label]), mean(prob), mean(np.eye(k)[prob.argmax(axis=1)])
    pure = truth.max(axis=1) == 1
    if not pure.any():
        return None
    winner = np.where(votes == votes.max(axis=1, keepdims=True), mean_prob, -1).argmax(axis=1)
    # the winner of a tie gets a little more than its votes, so that it has the largest score
    scores = {"majority": (votes + 1e-6 * np.eye(k)[winner]) / (1 + 1e-6), "mean": mean_prob}
    true = truth.argmax(axis=1)[pure]
    return {
        "patients": int(pure.sum()),
        "mixed": int((~pure).sum()),
        "without": int((~known).sum()),
        "missing": [
            predictions.classes[c] for c in range(k) if (predictions.label == c).any() and not (true == c).any()
        ],
        **{rule: evaluate_predictions(true, scores[rule][pure], predictions.classes) for rule in RULES},
    }
