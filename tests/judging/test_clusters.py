"""Resampling of whole clusters, against scikit-learn's weighted metrics and SciPy's bootstrap."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from brain_dist.judging import clusters
from brain_dist.judging.clusters import (
    SEED,
    ClassGroups,
    Resampled,
    number_clusters,
    resample,
    share_interval,
    weight_blocks,
)
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
    hits = [np.bincount(cluster, weights=p.argmax(axis=1) == label) for p in (prob, other)]
    weights = next(weight_blocks(int(cluster.max()) + 1, 500, SEED, rows=500))
    expected = weights @ (hits[0] - hits[1]) / (weights @ np.bincount(cluster))  # of one and the same resample
    np.testing.assert_allclose((drawn.mean([0]) - drawn.mean([2])).values, expected, rtol=0, atol=1e-12)
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


def share(hits: np.ndarray, size: np.ndarray) -> Resampled:
    return resample(lambda weights: ((weights @ hits) / (weights @ size))[:, None], np.arange(len(size)), 500).mean([0])


def test_the_interval_of_a_share_without_spread_is_that_of_its_groups() -> None:
    size = np.full(40, 25.0)
    some = share(size - np.arange(40) % 3, size)
    assert share_interval(some) == {"interval": some.bca(), "interval_of": "BCa"}
    assert share_interval(some, method="percentile") == {"interval": some.percentile(), "interval_of": "percentile"}
    for estimate, hits in ((1.0, size), (0.0, 0 * size)):
        for groups, trials in ((None, 40), (12, 12)):
            expected = stats.binomtest(int(estimate * trials), trials).proportion_ci(method="wilson")
            result = share_interval(share(hits, size), groups)
            assert result["interval_of"] == "Wilson"
            assert result["interval"] == pytest.approx([expected.low, expected.high])
    with pytest.raises(Refusal, match="only 9 groups; an interval over groups needs 10"):
        share_interval(share(size, size), 9)
    with pytest.raises(Refusal, match="only 9 groups; an interval over groups needs 10"):
        share_interval(share(size[:9], size[:9]))


def test_metrics_of_a_class_with_few_groups_are_refused() -> None:
    # groups of a class: 30 of a, 12 of b, 9 of c, none of d; group 0 has all three
    of_class = [range(30), (0, *range(30, 41)), (0, *range(41, 49))]
    label, cluster = np.array([(c, g) for c, groups in enumerate(of_class) for g in (*groups, *groups)]).T
    groups = ClassGroups.count(label, cluster, ("a", "b", "c", "d"))
    assert groups.having.tolist() == [30, 12, 9, 0]
    assert groups.others.tolist() == [20, 38, 41, 49]

    def refusal(metric: str, c: int | None = None) -> str | None:
        return or_refusal(lambda: groups.check(metric, c) or {}).get("refused")

    rare = "only 9 groups of c; an interval over groups needs 10"
    assert {refusal(name) for name in ("accuracy", "brier", "nll", "ece")} == {None}
    macro = ("balanced_accuracy", "f1_macro", "auc_macro", "precision_macro", "specificity_macro", "kappa", "mcc")
    assert {refusal(name) for name in macro} == {rare}
    of_one = ("sensitivity", "auc", "f1", "precision")
    assert {refusal(name, c) for name in ("specificity", *of_one) for c in (0, 1)} == {None}
    assert {refusal(name, 2) for name in of_one} == {rare}
    assert refusal("specificity", 2) is None
    assert refusal("sensitivity", 3) == "only 0 groups of d; an interval over groups needs 10"

    two = ClassGroups.count(np.repeat([0, 1], [150, 9]), np.arange(159), ("a", "b"))
    with pytest.raises(Refusal, match="only 9 groups not of a"):
        two.check("specificity", 0)
    assert two.check("specificity", 1) is None


@pytest.mark.slow
@pytest.mark.parametrize("rare", [5, 10])
def test_coverage_of_balanced_accuracy_with_a_rare_class(rare: int) -> None:
    """Of 300 samples of patients the 95 % interval contains the true value about as often as it says, or is refused.

    A patient's three images are all right or all wrong; 80 % of the patients of either class are right.
    """
    rng, contained = np.random.default_rng(0), []
    size = np.array([150, rare])
    cluster = np.repeat(np.arange(size.sum()), 3)
    label = np.repeat([0, 1], 3 * size)
    groups = ClassGroups.count(label, cluster, ("common", "rare"))
    if rare < 10:
        with pytest.raises(Refusal):
            groups.check("balanced_accuracy")
    for seed in range(300):
        right = np.repeat(rng.random(size.sum()) < 0.8, 3)
        prob = np.eye(2)[np.where(right, label, 1 - label)]
        metric = resample(WeightedMetrics(label, prob, cluster, ["balanced_accuracy"]), cluster, 1000, seed).mean([0])
        interval = or_refusal(lambda metric=metric: {"limits": metric.bca()}).get("limits")
        if interval is not None:
            contained.append(interval[0] <= 0.8 <= interval[1])
    assert (np.mean(contained) > 0.85) == (rare >= 10)


def test_the_only_cluster_gives_no_warning() -> None:
    """Nothing is left without it, so the jackknife is undefined: no text of NumPy on the user's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resampled = resample(
            lambda weights: (weights @ [[3.0]]) / weights.sum(axis=1, keepdims=True) / 4, np.zeros(4, dtype=int), 10
        )
    assert resampled.estimate.tolist() == [0.75]
    assert np.isnan(resampled.jackknife).all()
