"""Calibration errors, scaling and selective prediction against published values, libraries and hand calculation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from brain_dist.calibration.measures import (
    ERRORS,
    MEASURES,
    binned_gap,
    brier_parts,
    calibration_errors,
    mass_bins,
    measures_statistic,
    null_errors,
    smooth_error,
    verdict,
)
from brain_dist.calibration.scaling import fit_temperature, fit_vector, scaled
from brain_dist.calibration.selective import COVERAGES, accuracy_statistic, area_under_risk, risk_curve
from brain_dist.judging.clusters import SEED, resample, weight_blocks
from brain_dist.judging.metrics import evaluate_predictions, width_bins
from brain_dist.judging.refusal import Refusal

FORECAST = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1])
OUTCOME = np.array([0, 0, 1, 0, 1, 1, 0, 1, 1, 1])


def sample(n: int, seed: int = 0, factor: float = 1.0, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from softmax(logit), and logits that are ``factor`` times too large."""
    rng = np.random.default_rng(seed)
    logit = 1.5 * rng.normal(size=(n, k))
    label = np.array([rng.choice(k, p=prob) for prob in softmax(logit, axis=1)])
    return label, factor * logit


class Logits(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose inputs are its own logits."""

    def __init__(self, k: int = 4) -> None:
        self.k = k

    def fit(self, x: np.ndarray, y: np.ndarray) -> Logits:
        self.classes_ = np.arange(self.k)
        return self

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        return x

    def predict(self, x: np.ndarray) -> np.ndarray:
        return x.argmax(axis=1)


def test_temperature_is_that_of_scikit_learn() -> None:
    label, logit = sample(458, factor=1.9)
    temperature = fit_temperature(label, logit)
    model = FrozenEstimator(Logits().fit(logit, label))
    theirs = CalibratedClassifierCV(model, method="temperature", ensemble=False).fit(logit, label)
    assert 1 / theirs.calibrated_classifiers_[0].calibrators[0].beta_ == pytest.approx(temperature, rel=1e-5)
    np.testing.assert_allclose(theirs.predict_proba(logit), scaled(logit, 1 / temperature), atol=1e-6)
    assert temperature == pytest.approx(1.9, rel=0.15)


def test_vector_scaling_is_the_best_of_its_kind() -> None:
    """With two classes it is a logistic regression on both logits, which scikit-learn fits."""
    label, logit = sample(600, k=2)
    logit = logit * [2.0, 0.7] + [0.5, -0.5]
    weight, bias = fit_vector(label, logit, np.arange(600))
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(logit, label)
    np.testing.assert_allclose([-weight[0], weight[1]], reference.coef_[0], rtol=1e-3)
    assert bias[1] - bias[0] == pytest.approx(reference.intercept_[0], rel=1e-3)
    assert bias.sum() == pytest.approx(0)
    label, logit = sample(2000, k=4)
    weight, bias = fit_vector(label, logit * [2, 1, 1, 0.5] + [0.3, 0, 0, -0.3], np.arange(2000))
    np.testing.assert_allclose(weight, [0.5, 1, 1, 2], rtol=0.2)


def test_no_scaling_fits() -> None:
    label = np.array([0, 1, 2, 3] * 20)
    right = 3.0 * np.eye(4)[label]
    with pytest.raises(Refusal, match="too few images are wrong"):
        fit_temperature(label, right)
    with pytest.raises(Refusal, match="not better than chance"):
        fit_temperature(label, -right)
    with pytest.raises(Refusal, match="too few images of some class are wrong"):
        fit_vector(label, right, np.arange(80))
    with pytest.raises(Refusal, match="only 9 groups"):
        fit_vector(label, right, np.arange(80) // 4 % 9)


def test_expected_calibration_error_of_published_examples() -> None:
    """The ten forecasts are an example for netcal and relplot, whose answers have numerical errors.

    By hand, ten bins give 0.305. netcal gives 0.265, because the edge 3 / 10 is 0.30000000000000004 in float64 and
    moves the forecast 0.3 into the bin of 0.2. The smooth error is exactly 0.09356 (the integral on 20,000 points);
    relplot gives 0.0949 on a mesh of 200.
    """
    assert binned_gap(FORECAST, OUTCOME, width_bins(FORECAST, 10)) == pytest.approx(0.305)
    assert binned_gap(FORECAST, OUTCOME, np.digitize(FORECAST, np.linspace(0, 1, 11))) == pytest.approx(0.265)
    assert binned_gap(FORECAST, OUTCOME, mass_bins(FORECAST, 5)) == pytest.approx(0.205)
    assert smooth_error(FORECAST, OUTCOME) == pytest.approx(0.09356, abs=5e-5)
    # a confidence of exactly 1 shares the last bin with 0.95: |0.975 - 0.5|
    prob = np.array([[0.05, 0.95], [0, 1]])
    assert calibration_errors(np.array([1, 0]), prob, bins=10)["ece"] == pytest.approx(0.475)


def test_bins_of_equal_numbers() -> None:
    assert np.bincount(mass_bins(np.random.default_rng(0).random(100), 7)).tolist() == [15, 14, 14, 15, 14, 14, 14]
    assert set(mass_bins(np.array([0.5] * 9 + [0.9]), 5)) == {0, 4}  # equal values are not torn apart


def test_statistics_agree_with_the_metrics() -> None:
    label, logit = sample(300, factor=2)
    prob, cluster = scaled(logit), np.arange(300) // 3
    estimate = dict(
        zip(MEASURES, resample(measures_statistic(label, prob, cluster), cluster, 10).estimate, strict=True)
    )
    metrics = evaluate_predictions(label, prob.astype(np.float32), "abcd")
    assert estimate["ece"] == pytest.approx(metrics["ece"], abs=1e-6)
    assert estimate["brier"] == pytest.approx(metrics["brier"], abs=1e-6)
    assert estimate["nll"] == pytest.approx(log_loss(label, prob))
    assert {name: estimate[name] for name in ERRORS} == pytest.approx(calibration_errors(label, prob))
    doubled = measures_statistic(label, prob, cluster)(np.where(np.arange(100) < 50, 2.0, 0.0)[None])
    half = calibration_errors(label[:150], prob[:150])
    assert doubled[0, [0, 2]].tolist() == pytest.approx([half["ece"], half["ece_class"]])  # bins of equal width stay


def test_what_right_probabilities_show() -> None:
    """The error of probabilities that are right by construction is what the null predicts, not 0."""
    errors = [calibration_errors(label, scaled(logit))["ece"] for label, logit in (sample(200, s) for s in range(200))]
    _, logit = sample(200)
    null = null_errors(scaled(logit), np.arange(200))["ece"]
    assert null["mean"] == pytest.approx(np.mean(errors), rel=0.1)
    assert np.mean(np.array(errors) <= null["p95"]) == pytest.approx(0.95, abs=0.05)
    assert null["mean"] > 0.03
    # ten images of a patient that err together: chance gives more
    together = null_errors(scaled(logit), np.arange(200) // 10)["ece"]
    assert together["p95_grouped"] > 1.3 * together["p95"]
    values = [null["mean"], (together["p95"] + together["p95_grouped"]) / 2, 0.5]
    assert [verdict(value, together) for value in values] == ["calibrated", "undecided", "miscalibrated"]


def test_parts_of_the_brier_score() -> None:
    label, logit = sample(500, factor=2)
    prob = scaled(logit)
    parts = brier_parts(label, prob)
    brier = ((prob - np.eye(4)[label]) ** 2).sum(axis=1).mean()
    total = parts["reliability"] - parts["resolution"] + parts["uncertainty"] + parts["within_bins"]
    assert total == pytest.approx(brier)
    assert parts["uncertainty"] == pytest.approx(1 - (np.bincount(label) ** 2).sum() / 500**2)
    # by hand: two forecasts, 0.75 and 0.25; frequencies 1/2 and 0
    prob = np.array([[0.25, 0.75]] * 2 + [[0.75, 0.25]] * 2)
    parts = brier_parts(np.array([1, 0, 0, 0]), prob)
    assert parts["reliability"] == pytest.approx(2 * 0.25**2)
    assert parts["resolution"] == pytest.approx(2 * 0.25**2)
    assert parts["uncertainty"] == pytest.approx(2 * 3 / 16)
    assert parts["within_bins"] == pytest.approx(0)


def test_selective_prediction() -> None:
    correct, confidence = np.array([True, True, False, True, False]), np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    np.testing.assert_allclose(risk_curve(correct, confidence), [0, 0, 1 / 3, 1 / 4, 2 / 5])
    area = area_under_risk(correct, confidence)
    assert area["aurc"] == pytest.approx((1 / 3 + 1 / 4 + 2 / 5) / 5)
    assert area["best"] == pytest.approx((1 / 4 + 2 / 5) / 5)
    assert area["random"] == pytest.approx(2 / 5)
    # one confidence for all: the order says nothing, wherever the errors are in the table
    np.testing.assert_allclose(risk_curve(correct, np.ones(5)), [0.4] * 5)
    assert COVERAGES == (1.0, 0.9, 0.8)
    rng = np.random.default_rng(0)
    confidence, cluster = rng.random(1000), np.arange(1000) // 5
    correct = rng.random(1000) < confidence
    estimate = resample(accuracy_statistic(correct, confidence, cluster), cluster, 10).estimate
    surest = np.argsort(-confidence)
    assert estimate.tolist() == pytest.approx([correct[surest[: int(c * 1000)]].mean() for c in COVERAGES])


@pytest.mark.parametrize("digits", [1, 0])
def test_selective_accuracy_of_equal_confidences_varies_with_the_patients(digits: int) -> None:
    rng = np.random.default_rng(0)
    cluster = np.arange(400) // 10
    easy = rng.normal(size=40)[cluster]  # images of a patient are right or wrong together
    confidence = 1 / (1 + np.exp(-1.5 - easy))
    correct = rng.random(400) < confidence
    rounded = np.round(0.5 + confidence / 2, digits)
    assert len(np.unique(rounded)) <= 6
    resampled = resample(accuracy_statistic(correct, rounded, cluster), cluster, 300)
    hits = np.bincount(cluster, weights=correct)
    weights = next(weight_blocks(40, 300, SEED, rows=300))
    np.testing.assert_allclose(resampled.values[:, 0], weights @ hits / 400, rtol=0, atol=1e-12)
    # by the definition: the resampled images, sorted, and within the last tie its share of correct ones
    for row, values in zip(weights[:20], resampled.values[:20], strict=True):
        images = np.repeat(np.arange(400), row[cluster].astype(int))
        for coverage, value in zip(COVERAGES, values, strict=True):
            count = round(coverage * len(images))
            limit = np.sort(rounded[images])[-count]
            above, tied = images[rounded[images] > limit], images[rounded[images] == limit]
            expected = (correct[above].sum() + (count - len(above)) * correct[tied].mean()) / count
            assert value == pytest.approx(expected)
    distinct = resample(accuracy_statistic(correct, confidence, cluster), cluster, 300)
    assert resampled.mean([0]).percentile() == pytest.approx(distinct.mean([0]).percentile())
