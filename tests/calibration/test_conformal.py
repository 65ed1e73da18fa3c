"""Sets of classes: published values, the coverage that is promised, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import betabinom, kstest

from brain_dist.calibration.conformal import (
    Threshold,
    aps_scores,
    coverage_law,
    fit_method,
    fit_threshold,
    lac_scores,
    needed_rank,
    wanted_coverage,
)
from brain_dist.judging.refusal import Refusal


@pytest.mark.parametrize(("n", "rank"), [(9, 9), (19, 18), (99, 90), (458, 414)])
def test_the_threshold_is_an_order_statistic(n: int, rank: int) -> None:
    score = np.random.default_rng(0).permutation(n) + 1.0
    threshold = fit_threshold(score, np.arange(n), 0.1)
    assert (threshold.value, threshold.groups, threshold.k) == (rank, n, rank)


def test_the_rank_is_exact() -> None:
    """Some implementations were one rank too high for every fifth pair of n and alpha (MAPIE before 1.6)."""
    for n in range(19, 2000):
        assert needed_rank(n, 0.05) == -(-(n + 1) * 95 // 100)
        assert needed_rank(n, 0.1) == -(-(n + 1) * 9 // 10)


@pytest.mark.parametrize(("alpha", "fewest"), [(0.1, 9), (0.05, 19), (0.2, 4), (0.01, 99)])
def test_too_few_patients_are_refused(alpha: float, fewest: int) -> None:
    assert needed_rank(fewest, alpha) == fewest
    with pytest.raises(Refusal, match=f"only {fewest - 1} groups; sets of .* coverage need {fewest}"):
        needed_rank(fewest - 1, alpha)


def test_a_patient_counts_once() -> None:
    """A patient with very many slices does not set the threshold alone."""
    score = np.concatenate([np.arange(1.0, 20.0), np.full(500, 100.0)])
    cluster = np.concatenate([np.arange(19), np.full(500, 19)])
    threshold = fit_threshold(score, cluster, 0.1)
    assert (threshold.value, threshold.k) == (19.0, 19)
    tripled = fit_threshold(np.repeat(np.arange(1.0, 20.0), 3), np.repeat(np.arange(19), 3), 0.1)
    assert tripled.value == 18.0


def test_the_law_of_the_coverage() -> None:
    law = coverage_law(Threshold(0.7, 458, 414), 912)
    assert law["beta"] == [414, 45]
    assert law["mean"] == pytest.approx(414 / 459)
    assert law["measured_range"] == pytest.approx([0.8662, 0.9331], abs=5e-5)
    assert law["measured_range"] == (betabinom.ppf([0.025, 0.975], 912, 414, 45) / 912).tolist()


def patients(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label, logits and group of images; patients have 1 to 12 slices, and some are harder than others."""
    slices = rng.integers(1, 13, count)
    group = np.repeat(np.arange(count), slices)
    label = rng.integers(0, 3, count)[group]
    logit = rng.normal(size=(len(group), 3)) + rng.normal(size=count)[group, None] ** 2 * np.eye(3)[label]
    return label, logit, group


@pytest.mark.parametrize("method", ["lac", "aps", "class_conditional"])
def test_sets_cover_new_patients_as_promised(method: str) -> None:
    """Over 300 fits, the sets of a random slice of a new patient contain its class at least as often as promised."""
    rng, coverages = np.random.default_rng(1), []
    for _ in range(300):
        label, logit, group = patients(rng, 90)
        thresholds = fit_method(method, label, logit, group, 0.2)
        label, logit, group = patients(rng, 100)
        score = (aps_scores if method == "aps" else lac_scores)(logit)[np.arange(len(label)), label]
        covered = score <= np.array([threshold.value for threshold in thresholds])[label]
        means = np.bincount(group, covered) / np.bincount(group)
        of_class = label[np.unique(group, return_index=True)[1]]
        coverages.append([means.mean(), *(means[of_class == c].mean() for c in range(3))])
    overall, *by_class = np.mean(coverages, axis=0)
    assert 0.795 <= overall <= 0.88
    if method == "class_conditional":
        assert min(by_class) >= 0.795


def test_adaptive_scores_by_hand() -> None:
    (scores,) = aps_scores(np.log([[0.2, 0.5, 0.3]]))
    share = scores[1] / 0.5
    assert 0 < share < 1
    np.testing.assert_allclose(scores, [0.8 + 0.2 * share, 0.5 * share, 0.5 + 0.3 * share])


def test_adaptive_scores_belong_to_the_image_and_not_to_its_place_in_the_table() -> None:
    _, logit, _ = patients(np.random.default_rng(3), 200)
    logit = logit.astype(np.float32)
    scores = aps_scores(logit)
    shares = scores.min(axis=1) / np.exp(logit).max(axis=1) * np.exp(logit).sum(axis=1)  # of the likeliest class
    assert kstest(shares, "uniform").pvalue > 0.01
    order = np.random.default_rng(4).permutation(len(logit))
    np.testing.assert_allclose(aps_scores(logit[order]), scores[order], rtol=0, atol=1e-12)
    for image in (0, 1, 2):
        np.testing.assert_allclose(aps_scores(logit[[image]]), scores[[image]], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("alpha", "text"), [(0.1, "90"), (0.05, "95"), (0.025, "97.5"), (0.07, "93"), (0.001, "99.9")])
def test_the_wanted_coverage_has_all_its_digits(alpha: float, text: str) -> None:
    assert wanted_coverage(alpha) == f"{text}\u00a0%"
    with pytest.raises(Refusal, match=f"only 3 groups; sets of {text}\u00a0% coverage need"):
        needed_rank(3, alpha)


def test_thresholds_of_classes_need_ten_groups_each() -> None:
    label, logit, group = np.repeat([0, 1], [60, 9]), np.zeros((69, 2)), np.arange(69)
    with pytest.raises(Refusal, match="a class has only 9 groups"):
        fit_method("class_conditional", label, logit, group, 0.1)
