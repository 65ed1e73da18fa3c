"""Intervals of every metric of the report: a resample of groups is a table in which groups repeat."""

from __future__ import annotations

import numpy as np
import pytest

from brain_dist.judging.metrics import evaluate_predictions, wilson_interval
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
    assert intervals.pop("ece") is None
    for name, interval in intervals.items():
        expected = np.quantile([each[name] for each in resampled], [0.025, 0.975])
        width = expected[1] - expected[0]
        assert interval is not None
        np.testing.assert_allclose(interval, expected, atol=0.2 * width, err_msg=name)
        assert interval[0] < values(evaluate_predictions(label, prob, CLASSES))[name] < interval[1]


def test_what_has_no_interval() -> None:
    label, prob, group = sample()
    few = metric_intervals(table(label, prob, group % 9))
    assert few["accuracy"] is None  # nine groups
    perfect = np.eye(3, dtype=np.float32)[label] * 0.97 + 0.01
    intervals = metric_intervals(table(label, perfect, group))
    assert intervals["accuracy"] is None
    n = int((label == 0).sum())
    assert intervals["sensitivity:a"] == pytest.approx(wilson_interval(n, n))
    absent = metric_intervals(table(np.where(label == 2, 0, label), prob, group))
    assert absent["sensitivity:c"] is None
    assert absent["auc:c"] is None
    assert absent["accuracy"] is not None
