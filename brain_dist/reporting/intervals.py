"""95 % intervals of every metric on the report's page, from the same resamples of whole groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from brain_dist.calibration.measures import NO_INTERVAL
from brain_dist.judging.clusters import ClassGroups, Resampled, Statistic, number_clusters, resample, share_interval
from brain_dist.judging.predictions import Predictions
from brain_dist.judging.refusal import or_refusal
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


def metric_intervals(predictions: Predictions) -> dict[str, dict[str, Any]]:
    """The 95 % interval of each metric by percentiles over groups, or the reason why it has none.

    The names are those of :func:`brain_dist.judging.metrics.evaluate_predictions`; the metrics of a class are named
    ``METRIC:CLASS``. Each has ``interval`` [low, high] and ``interval_of`` ("percentile", or "Wilson" for an accuracy,
    sensitivity, specificity or precision of 0 or 1, see :func:`~brain_dist.judging.clusters.share_interval`), or
    ``refused``, as the calibration error has, which resampling raises.
    """
    label, prob, classes = predictions.label, predictions.prob, predictions.classes
    cluster, present = number_clusters(predictions.group), np.unique(label)
    overall_names = (*METRICS, *(f"{metric}_macro" for metric in MACRO_METRICS))
    names: list[tuple[str, int | None]] = [(name, None) for name in overall_names]
    names += [(metric, c) for metric in CLASS_METRICS for c in range(len(classes))]
    overall, of_class = WeightedMetrics(label, prob, cluster, list(METRICS)), _class_metrics(label, prob, cluster)

    def statistic(weights: np.ndarray) -> np.ndarray:
        values = of_class(weights)
        macro = [
            values[:, CLASS_METRICS.index(name) * len(classes) + present].mean(axis=1, keepdims=True)
            for name in MACRO_METRICS
        ]
        return np.concatenate([overall(weights), *macro, values], axis=1)

    resampled = resample(statistic, cluster, RESAMPLES)
    groups = ClassGroups.count(label, cluster, classes)
    called = ClassGroups.count(predictions.predicted, cluster, classes)
    intervals = {
        name if c is None else f"{name}:{classes[c]}": or_refusal(
            _interval, resampled.mean([column]), name, c, groups, called
        )
        for column, (name, c) in enumerate(names)
    }
    return intervals | {"ece": {"refused": NO_INTERVAL}}


def _interval(
    single: Resampled, metric: str, c: int | None, groups: ClassGroups, called: ClassGroups
) -> dict[str, Any]:
    """The interval of one metric, of one class if ``c`` is given; ``called`` counts the groups by predicted class."""
    groups.check(metric, c)
    if metric.startswith("precision"):
        called.check(metric, c)
    if metric == "accuracy":
        return share_interval(single, method="percentile")
    shares = {"sensitivity": groups.having, "specificity": groups.others, "precision": called.having}
    if metric in shares and c is not None:
        return share_interval(single, int(shares[metric][c]), method="percentile")
    return {"interval": single.percentile(), "interval_of": "percentile"}


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
