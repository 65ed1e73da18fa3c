"""The area under the ROC curve within patients: against scikit-learn, and its interval."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from brain_dist.judging.refusal import Refusal
from brain_dist.judging.within import mean_over_patients, within_patient_auc


def test_each_patient_s_area_is_scikit_learn_s() -> None:
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, 12, 200)
    positive = (rng.random(200) < 0.4) & (cluster > 1)  # two patients have no slice with a tumour
    score = np.round(rng.normal(size=200) + positive, 1)  # with ties
    values, patients = within_patient_auc(score, positive, cluster)
    assert patients.tolist() == list(range(2, 12))
    expected = [roc_auc_score(positive[cluster == p], score[cluster == p]) for p in patients]
    assert values == pytest.approx(expected, abs=1e-12)


def test_a_difference_between_patients_is_not_one_within_them() -> None:
    cluster = np.repeat(np.arange(20), 10)
    positive = np.arange(200) % 10 < np.where(cluster % 2, 8, 2)
    score = (cluster % 2).astype(float)  # knows which patients have the larger tumours, nothing about slices
    assert roc_auc_score(positive, score) == pytest.approx(0.8)
    values, _ = within_patient_auc(score, positive, cluster)
    assert values.tolist() == [0.5] * 20


def test_the_interval_is_that_of_a_mean_of_patients() -> None:
    values = np.random.default_rng(1).normal(0.7, 0.1, size=(400, 3))
    drawn = mean_over_patients(values)
    assert drawn.estimate == pytest.approx(values.mean(axis=0))
    low, high = drawn.mean([0, 1, 2]).bca()
    error = values.mean(axis=1).std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=error / 4)
    assert drawn.jackknife[7] == pytest.approx(np.delete(values, 7, axis=0).mean(axis=0))


def test_patients_without_both_kinds_are_refused() -> None:
    values, _ = within_patient_auc(np.zeros(4), np.array([True, True, False, False]), np.array([0, 0, 1, 1]))
    with pytest.raises(Refusal, match="no patient has slices of both kinds"):
        mean_over_patients(values)
