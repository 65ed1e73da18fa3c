"""Intervals of every metric of the report: a resample of groups is a table in which groups repeat."""

from __future__ import annotations

import numpy as np

from brain_dist.judging.clusters import wilson_interval
from brain_dist.judging.metrics import accuracy_interval, evaluate_predictions
from brain_dist.judging.predictions import Predictions
from brain_dist.reporting.intervals import CLASS_METRICS, METRIC_NAMES, metric_intervals

CLASSES = ("a", "b", "c")


def table(label: np.ndarray, prob: np.ndarray, group: np.ndarray) -> Predictions:
    n = len(label)
    text = np.array(["x"] * n, dtype=object)
    arrays = {"row": np.arange(n), "key": text, "dataset": text, "split": text, "patient": text}
    names = group.astype(str).astype(object)
    return Predictions(
        **arrays, group=names, label=label, prob=prob, logit=np.log(prob), classes=CLASSES, run="r", step=1,
        dataset_version="v", shards="s",
    )  # fmt: skip


def sample(n: int = 240) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label, probabilities and group; four images in each group."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, n)
    prob = np.exp(rng.normal(size=(n, 3)) + 1.5 * np.eye(3)[label])
    return label, (prob / prob.sum(1, keepdims=True)).astype(np.float32), np.arange(n) // 4


def values(metrics: dict) -> dict[str, float]:  # type: ignore[type-arg]
    result = {name: metrics[name] for name in METRIC_NAMES}
    return result | {f"{m}:{c}": metrics["per_class"][c][m] for m in CLASS_METRICS for c in CLASSES}


def test_intervals_are_the_percentiles_of_resampled_tables() -> None:
    label, prob, group = sample()
    intervals = metric_intervals(table(label, prob, group))
    rng, resampled = np.random.default_rng(5), []
    for _ in range(400):
        rows = np.concatenate([np.flatnonzero(group == g) for g in rng.integers(0, 60, 60)])
        resampled.append(values(evaluate_predictions(label[rows], prob[rows], CLASSES)))
    assert set(intervals) == set(resampled[0])
    assert "refused" in intervals.pop("ece")
    for name, result in intervals.items():
        interval = result["interval"]
        expected = np.quantile([each[name] for each in resampled], [0.025, 0.975])
        width = expected[1] - expected[0]
        np.testing.assert_allclose(interval, expected, atol=0.2 * width, err_msg=name)
        assert interval[0] < values(evaluate_predictions(label, prob, CLASSES))[name] < interval[1]
    assert intervals["accuracy"] == accuracy_interval(prob.argmax(axis=1) == label, group)


def test_what_has_no_interval() -> None:
    label, prob, group = sample()
    few = metric_intervals(table(label, prob, group % 9))
    assert few["accuracy"] == {"refused": "only 9 groups; an interval over groups needs 10"}
    perfect = np.eye(3, dtype=np.float32)[label] * 0.97 + 0.01
    intervals = metric_intervals(table(label, perfect, group))
    assert intervals["accuracy"] == {"interval": wilson_interval(60, 60), "interval_of": "Wilson"}
    groups = len(np.unique(group[label == 0]))
    assert 10 < groups < (label == 0).sum()
    assert intervals["sensitivity:a"] == {"interval": wilson_interval(groups, groups), "interval_of": "Wilson"}
    others = len(np.unique(group[label != 0]))
    assert intervals["specificity:a"] == {"interval": wilson_interval(others, others), "interval_of": "Wilson"}
    assert intervals["balanced_accuracy"] == {"refused": "no spread: every resample gives the same value"}


def test_classes_of_few_groups_have_no_interval() -> None:
    label, prob, group = sample()
    absent = metric_intervals(table(np.where(label == 2, 0, label), prob, group))
    assert {absent[f"{name}:c"]["refused"] for name in ("sensitivity", "auc", "precision", "f1")} == {
        "only 0 groups of c; an interval over groups needs 10"
    }
    assert "interval" in absent["balanced_accuracy"]
    rare = np.where((label == 2) & (group > 11), 0, label)
    groups = len(np.unique(group[rare == 2]))
    assert 5 < groups < 10
    intervals = metric_intervals(table(rare, prob, group))
    macro = ("balanced_accuracy", "f1_macro", "auc_macro", "precision_macro", "specificity_macro", "kappa", "mcc")
    for name in (*macro, "sensitivity:c", "f1:c", "auc:c", "precision:c"):
        assert intervals[name] == {"refused": f"only {groups} groups of c; an interval over groups needs 10"}
    for name in ("accuracy", "brier", "sensitivity:a", "specificity:c", "auc:a"):
        assert "interval" in intervals[name], name


def test_precision_of_a_class_that_few_groups_are_predicted_as() -> None:
    label, prob, group = sample()
    predicted = prob.argmax(axis=1)
    predicted = np.where((predicted == 2) & (group >= 8), 0, predicted)
    groups = len(np.unique(group[predicted == 2]))
    assert 5 < groups < 10
    intervals = metric_intervals(table(label, (np.eye(3) * 0.97 + 0.01)[predicted], group))
    for name in ("precision:c", "precision_macro"):
        assert intervals[name] == {"refused": f"only {groups} groups of c; an interval over groups needs 10"}
    assert "interval" in intervals["sensitivity:c"]


def test_macro_means_are_over_the_classes_that_occur() -> None:
    label, prob, group = sample()
    predictions = table(np.where(label == 2, 0, label), prob, group)
    low, high = metric_intervals(predictions)["specificity_macro"]["interval"]
    value = evaluate_predictions(predictions.label, prob, CLASSES)["specificity_macro"]
    assert low < value < high
    all_classes = np.mean([np.mean(prob[predictions.label != c].argmax(axis=1) != c) for c in range(3)])
    assert abs(all_classes - value) > 0.01
