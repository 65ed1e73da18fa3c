"""Resampling of whole clusters, against scikit-learn's weighted metrics and SciPy's bootstrap."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from brain_dist.judging import clusters
from brain_dist.judging.clusters import Resampled, number_clusters, resample, weight_blocks
from brain_dist.judging.metrics import evaluate_predictions
from brain_dist.judging.refusal import Refusal, or_refusal
from brain_dist.judging.weighted import MEANS, METRICS, WeightedMetrics, contributions


def random_table(seed: int, n: int = 240, groups: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels [n] of three classes, probabilities [n, 3] with ties, and the number of each sample's cluster."""
    rng = np.random.default_rng(seed)
    label = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    logit = np.round(rng.normal(size=(n, 3)) + 1.2 * np.eye(3)[label], 1)
    prob = np.exp(logit)
    cluster = number_clusters(rng.integers(0, groups, n))
    return label, (prob / prob.sum(1, keepdims=True)).astype(np.float32), cluster


def test_weights_are_multinomial_and_do_not_depend_on_blocks() -> None:
    whole = next(weight_blocks(30, 2000, seed=5, rows=2000))
    blocks: Iterator[np.ndarray] = weight_blocks(30, 2000, seed=5, rows=7)
    np.testing.assert_array_equal(np.concatenate(list(blocks)), whole)
    assert (whole.sum(axis=1) == 30).all()
    assert whole.mean() == 1
    assert whole.var(axis=0).mean() == pytest.approx(29 / 30, rel=0.02)


def test_estimates_are_the_metrics_of_the_table() -> None:
    label, prob, cluster = random_table(0)
    expected = evaluate_predictions(label, prob, "abc")
    values = WeightedMetrics(label, prob, cluster, list(METRICS))(np.ones((1, cluster.max() + 1)))[0]
    assert dict(zip(METRICS, values, strict=True)) == pytest.approx(
        {name: expected[name] for name in METRICS}, abs=1e-6
    )
    for name in MEANS:
        parts = contributions(name, label, prob)
        total = parts.sum() if name == "balanced_accuracy" else parts.mean()
        assert total == pytest.approx(expected[name], abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_weighted_metrics_are_those_of_scikit_learn(seed: int) -> None:
    label, prob, cluster = random_table(seed)
    weights = next(weight_blocks(int(cluster.max()) + 1, 5, seed, 5))
    values = WeightedMetrics(label, prob, cluster, [*METRICS, "sensitivity:1", "specificity:1"])(weights)
    exact, predicted = prob.astype(np.float64), prob.argmax(1)
    for row, weight in zip(values, weights[:, cluster], strict=True):
        auc = [sk.roc_auc_score(label == c, exact[:, c], sample_weight=weight) for c in range(3)]
        true = exact[np.arange(len(label)), label]
        expected = [
            sk.accuracy_score(label, predicted, sample_weight=weight),
            sk.balanced_accuracy_score(label, predicted, sample_weight=weight),
            sk.f1_score(label, predicted, average="macro", sample_weight=weight),
            sk.cohen_kappa_score(label, predicted, sample_weight=weight),
            sk.matthews_corrcoef(label, predicted, sample_weight=weight),
            np.mean(auc),
            np.average(((exact - np.eye(3)[label]) ** 2).sum(1), weights=weight),
            np.average(-np.log(true), weights=weight),
            np.average((predicted == 1)[label == 1], weights=weight[label == 1]),
            np.average((predicted != 1)[label != 1], weights=weight[label != 1]),
        ]
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-12)


def test_a_class_that_a_resample_lacks_is_undefined() -> None:
    label, prob = np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    cluster = np.array([0, 0, 1, 1])
    row = WeightedMetrics(label, prob, cluster, list(METRICS))(np.array([[2.0, 0.0]]))[0]
    values = dict(zip(METRICS, row, strict=True))
    assert values["accuracy"] == 1
    assert [name for name, value in values.items() if np.isnan(value)] == [
        "balanced_accuracy", "f1_macro", "kappa", "mcc", "auc_macro",
    ]  # fmt: skip


def test_intervals_are_those_of_scipy() -> None:
    rng = np.random.default_rng(4)
    hits, sizes = rng.integers(0, 5, 60) ** 2.0, rng.integers(16, 25, 60).astype(float)

    def ratio(hits: np.ndarray, sizes: np.ndarray, axis: int) -> np.ndarray:
        return hits.sum(axis=axis) / sizes.sum(axis=axis)

    own = resample(lambda w: ((w @ hits) / (w @ sizes))[:, None], np.arange(60), 40_000).mean([0])
    for method, interval in (("BCa", own.bca()), ("percentile", own.percentile())):
        other = stats.bootstrap((hits, sizes), ratio, paired=True, n_resamples=40_000, method=method, rng=1)
        width = np.ptp(other.confidence_interval)
        np.testing.assert_allclose(interval, other.confidence_interval, atol=0.02 * width)
    assert own.bca() != own.percentile()


def test_p_value_agrees_with_the_interval() -> None:
    """The p-value is 5 % where the end of the 95 % interval is 0."""
    rng = np.random.default_rng(1)
    values = rng.gamma(2.0, size=80)
    own = resample(lambda w: (w @ values / w.sum(axis=1))[:, None], np.arange(80)).mean([0])
    low, high = own.bca()
    for end in (low, high):
        shifted = Resampled(own.estimate - end, own.values - end, own.jackknife - end)
        assert shifted.p_value() == pytest.approx(0.05, abs=1e-3)
    assert own.p_value() == pytest.approx(2 / 10_001)


def test_differences_are_paired_and_the_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    label, prob, cluster = random_table(2)
    other = np.roll(prob, 1, axis=0)
    metrics = [WeightedMetrics(label, p, cluster, ["accuracy", "auc_macro"]) for p in (prob, other, prob)]
    drawn = resample(lambda w: np.concatenate([metric(w) for metric in metrics], axis=1), cluster, 500)
    same = drawn.mean([1]) - drawn.mean([5])
    assert not same.values.any()
    with pytest.raises(Refusal, match="no spread"):
        same.bca()
    wide = np.ptp((drawn.mean([0]) - drawn.mean([2])).bca())
    assert wide < np.ptp(drawn.mean([0]).bca()) + np.ptp(drawn.mean([2]).bca())
    monkeypatch.setattr(clusters, "BLOCK_VALUES", 1000)
    blocks = resample(lambda w: np.concatenate([metric(w) for metric in metrics], axis=1), cluster, 500)
    np.testing.assert_allclose(blocks.values, drawn.values, rtol=0, atol=1e-14)
    np.testing.assert_allclose(blocks.jackknife, drawn.jackknife, rtol=0, atol=1e-14)


def test_what_resampling_cannot_carry_is_refused() -> None:
    label, prob, cluster = random_table(3, groups=9)
    few = resample(WeightedMetrics(label, prob, cluster, ["accuracy"]), cluster, 100).mean([0])
    assert or_refusal(lambda: {"interval": few.bca()}) == {"refused": "only 9 groups; an interval over groups needs 10"}
    label, prob, cluster = random_table(3)
    label = np.where(np.isin(cluster, (0, 1)), 2, 0)  # two groups of the second class
    drawn = resample(WeightedMetrics(label, prob, cluster, ["f1_macro"]), cluster, 1000).mean([0])
    with pytest.raises(Refusal, match=r"undefined in 1\d\d of 1,000 resamples: too few groups of one class"):
        drawn.percentile()
    assert np.isnan(drawn.values).mean() == pytest.approx(np.exp(-2), abs=0.03)


def test_an_interval_that_would_not_contain_its_estimate_is_refused() -> None:
    """The size of a mean that is 0 here: every resample has a larger one."""
    values = np.random.default_rng(0).gamma(2.0, size=60)
    values -= values.mean()
    size = resample(lambda w: np.abs(w @ values / w.sum(axis=1))[:, None], np.arange(60), 1000).mean([0])
    reason = "100.0% of the resamples are above the estimate, so that the interval would not contain it"
    for method in (size.bca, size.percentile, size.p_value):
        with pytest.raises(Refusal, match=reason):
            method()
    mirrored = Resampled(-size.estimate, -size.values, -size.jackknife)
    with pytest.raises(Refusal, match=r"100\.0% of the resamples are below"):
        mirrored.bca()
