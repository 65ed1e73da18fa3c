"""Ranking within patients: whether slices with a tumour get a higher score than slices of the same patient without one.

No property of a source, scanner or patient can give the answer, because both kinds of slices share all of them.
"""

from __future__ import annotations

import numpy as np

from brain_dist.judging.clusters import RESAMPLES, SEED, Resampled, resample
from brain_dist.judging.refusal import Refusal


def within_patient_auc(score: np.ndarray, positive: np.ndarray, cluster: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The area under the ROC curve of every patient who has slices of both kinds.

    Args:
        score: the score of each slice, float [N]; larger for tumours.
        positive: whether a slice has a tumour, bool [N].
        cluster: number of each slice's patient, int64 [N].

    Returns:
        The AUC of each such patient, float64 [P] (ties count half), and the numbers of these patients, int64 [P].
    """
    from scipy.stats import rankdata

    values, patients = [], []
    for patient in np.unique(cluster):
        rows = cluster == patient
        wanted = positive[rows]
        count = int(wanted.sum())
        if 0 < count < len(wanted):
            above = rankdata(score[rows])[wanted].sum() - count * (count + 1) / 2
            values.append(above / (count * (len(wanted) - count)))
            patients.append(patient)
    return np.array(values, dtype=np.float64), np.array(patients, dtype=np.int64)


def mean_over_patients(values: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> Resampled:
    """The mean of one value a patient, float [P] or float [P, M], resampled over the patients.

    Raises:
        Refusal: ``values`` is empty.
    """
    if not len(values):
        raise Refusal("no patient has slices of both kinds")
    return resample(
        lambda weights: weights @ values / weights.sum(axis=1).reshape(-1, *[1] * (values.ndim - 1)),
        np.arange(len(values)), resamples, seed,
    )  # fmt: skip
