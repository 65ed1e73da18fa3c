"""95 % intervals of every metric on the report's page, from the same resamples of whole groups."""

from __future__ import annotations

import numpy as np

from brain_dist.judging.clusters import Statistic, number_clusters, resample
from brain_dist.judging.metrics import wilson_interval
from brain_dist.judging.predictions import Predictions
from brain_dist.judging.refusal import Refusal
from brain_dist.judging.weighted import METRICS, WeightedMetrics

RESAMPLES = 2000
CLASS_METRICS = ("sensitivity", "specificity", "precision", "f1", "auc")
METRIC_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy (mean sensitivity)",
    "specificity_macro": "mean specificity",
    "precision_macro": "mean precision",
    "f1_macro": "macro F1",
    "auc_macro": "macro AUC",
    "kappa": "Cohen’s kappa",
    "mcc": "Matthews correlation",
    "ece": "expected calibration error",
    "brier": "Brier score",
    "nll": "negative log-likelihood (nats)",
}
MACRO_METRICS = ("specificity", "precision")  # the other means are among METRICS


def metric_intervals(predictions: Predictions) -> dict[str, list[float] | None]:
    """Interval [low, high] of each metric by percentiles over groups; None where resampling cannot give one.

    The names are those of :func:`brain_dist.judging.metrics.evaluate_predictions`; the metrics of a class are named
    ``METRIC:CLASS``. The calibration error has no interval, because resampling raises it; it is shown beside what right
    probabilities would show. Where all or no images of a class are right, its sensitivity has the Wilson interval.
    """
    label, prob, classes = predictions.label, predictions.prob, predictions.classes
    cluster = number_clusters(predictions.group)
    names = [*METRICS, *(f"{metric}:{name}" for metric in CLASS_METRICS for name in classes)]
    names += [f"{metric}_macro" for metric in MACRO_METRICS]
    parts: list[Statistic] = [
        WeightedMetrics(label, prob, cluster, list(METRICS)),
        _class_metrics(label, prob, cluster),
    ]
    resampled = resample(
        lambda weights: _reordered([part(weights) for part in parts], len(classes)), cluster, RESAMPLES
    )
    intervals: dict[str, list[float] | None] = {"ece": None}
    for column, name in enumerate(names):
        try:
            intervals[name] = resampled.mean([column]).percentile()
        except Refusal:
            intervals[name] = None
    for c, name in enumerate(classes):
        images = label == c
        if images.any() and intervals[f"sensitivity:{name}"] is None:
            hits = int((predictions.predicted[images] == c).sum())
            intervals[f"sensitivity:{name}"] = wilson_interval(hits, int(images.sum()))
    return intervals


def _reordered(parts: list[np.ndarray], k: int) -> np.ndarray:
    """Values [B, metrics], with the macro means of specificity and precision at the end."""
    classes = parts[-1]
    macro = [classes[:, CLASS_METRICS.index(name) * k :][:, :k].mean(axis=1) for name in MACRO_METRICS]
    return np.concatenate([*parts, np.stack(macro, axis=1)], axis=1)


def _class_metrics(label: np.ndarray, prob: np.ndarray, cluster: np.ndarray) -> Statistic:
    """:data:`CLASS_METRICS` of each class, [B, metrics × K]."""
    k = prob.shape[1]
    shape = (int(cluster.max()) + 1, k, k)
    cell = (cluster * k + label) * k + prob.argmax(axis=1)
    confusion = np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape).astype(np.float64)
    one_class = [  # the macro AUC of a class and the rest is the AUC of the class
        WeightedMetrics((label == c).astype(np.int64), np.stack([-prob[:, c], prob[:, c]], 1), cluster, ["auc_macro"])
        for c in range(k)
    ]

    def statistic(weights: np.ndarray) -> np.ndarray:
        summed = np.tensordot(weights, confusion, axes=1)
        hits, support, called = np.einsum("bkk->bk", summed), summed.sum(axis=2), summed.sum(axis=1)
        total = support.sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = [
                hits / support,
                (total - support - called + hits) / (total - support),
                hits / called,
                2 * hits / (support + called),
                np.concatenate([auc(weights) for auc in one_class], axis=1),
            ]
        return np.concatenate(values, axis=1)

    return statistic
