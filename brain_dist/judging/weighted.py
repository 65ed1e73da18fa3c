"""Metrics of predictions as functions of the clusters' weights, for :mod:`brain_dist.judging.clusters`.

With weights 1 they equal those of :func:`brain_dist.judging.metrics.evaluate_predictions`. A macro average is undefined
where one of the classes of the data has no weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brain_dist.judging.metrics import NLL_FLOOR


@dataclass(frozen=True)
class Metric:
    """What a metric is.

    Attributes:
        title: its name in words.
        higher_is_better: False for errors.
        is_share: whether it is shown in percent.
    """

    title: str
    higher_is_better: bool = True
    is_share: bool = True


METRICS = {
    "accuracy": Metric("accuracy"),
    "balanced_accuracy": Metric("balanced accuracy"),
    "f1_macro": Metric("macro F1"),
    "kappa": Metric("Cohen's kappa", is_share=False),
    "mcc": Metric("Matthews correlation", is_share=False),
    "auc_macro": Metric("macro AUC", is_share=False),
    "brier": Metric("Brier score", higher_is_better=False, is_share=False),
    "nll": Metric("negative log-likelihood", higher_is_better=False, is_share=False),
}
RANKING = ("auc_macro",)  # compare the scores of images with each other, so they need those of one network
MEANS = ("accuracy", "balanced_accuracy", "brier", "nll")  # sums over samples of fixed contributions


class WeightedMetrics:
    """Metrics of one set of predictions as a :data:`~brain_dist.judging.clusters.Statistic`.

    Args:
        label: true classes, int64 [N].
        prob: probabilities [N, K].
        cluster: number of each sample's cluster, int64 [N] in 0..I-1.
        names: metrics of :data:`METRICS`, or ``sensitivity:C`` or ``specificity:C`` with the number C of a class.
    """

    def __init__(self, label: np.ndarray, prob: np.ndarray, cluster: np.ndarray, names: Sequence[str]) -> None:
        self.names = list(names)
        self._classes = prob.shape[1]
        self._present = np.bincount(label, minlength=self._classes) > 0
        cell = (cluster * self._classes + label) * self._classes + prob.argmax(axis=1)
        shape = (int(cluster.max()) + 1, self._classes, self._classes)
        self._confusion = np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape).astype(np.float64)
        self._size = np.bincount(cluster).astype(np.float64)
        self._losses = {
            name: np.bincount(cluster, weights=contributions(name, label, prob))
            for name in ("brier", "nll")
            if name in self.names
        }
        if "auc_macro" in self.names:
            self._orders = [_Order(label == c, prob[:, c], cluster) for c in np.flatnonzero(self._present)]

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """Values [B, names] for weights of the clusters [B, I]."""
        confusion = np.tensordot(weights, self._confusion, axes=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.stack([self._value(name, weights, confusion) for name in self.names], axis=1)

    def _value(self, name: str, weights: np.ndarray, confusion: np.ndarray) -> np.ndarray:
        """[B] from weights [B, I] and confusion matrices [B, K, K] (rows true, columns predicted)."""
        if name in self._losses:
            return (weights @ self._losses[name]) / (weights @ self._size)
        if name == "auc_macro":
            if np.count_nonzero(self._present) < 2:
                return np.full(len(weights), np.nan)
            return np.mean([order.auc(weights) for order in self._orders], axis=0)
        hits, support, called = np.einsum("bkk->bk", confusion), confusion.sum(axis=2), confusion.sum(axis=1)
        total = support.sum(axis=1)
        if name.startswith("sensitivity:"):
            c = int(name.partition(":")[2])
            return hits[:, c] / support[:, c]
        if name.startswith("specificity:"):
            c = int(name.partition(":")[2])
            others = total - support[:, c]
            return (others - called[:, c] + hits[:, c]) / others
        sensitivity = (hits / support)[:, self._present]  # NaN for a class without weight
        agreement, expected = hits.sum(axis=1), (support * called).sum(axis=1)
        if name == "accuracy":
            return agreement / total
        if name == "balanced_accuracy":
            return sensitivity.mean(axis=1)
        if name == "f1_macro":
            f1 = 2 * hits[:, self._present] / (support + called)[:, self._present]
            return np.where(np.isnan(sensitivity).any(axis=1), np.nan, f1.mean(axis=1))
        if name == "kappa":
            return (agreement / total - expected / total**2) / (1 - expected / total**2)
        if name == "mcc":
            spread = (total**2 - (support**2).sum(axis=1)) * (total**2 - (called**2).sum(axis=1))
            return (agreement * total - expected) / np.sqrt(spread)
        raise ValueError(f"unknown metric {name}")


def contributions(name: str, label: np.ndarray, prob: np.ndarray) -> np.ndarray:
    """Per-sample contributions [N] to a metric of :data:`MEANS`.

    Accuracy, Brier score and negative log-likelihood are the mean of the contributions. Balanced accuracy is their sum:
    each sample's hit is divided by the number of classes and by the number of samples of its class.

    Args:
        name: the metric.
        label: true classes, int64 [N].
        prob: probabilities [N, K].
    """
    if name == "brier":
        return ((prob.astype(np.float64) - np.eye(prob.shape[1])[label]) ** 2).sum(axis=1)
    if name == "nll":
        true = prob[np.arange(len(label)), label].astype(np.float64)
        return -np.log(np.maximum(true, NLL_FLOOR))
    hit = (prob.argmax(axis=1) == label).astype(np.float64)
    if name == "accuracy":
        return hit
    support = np.bincount(label)
    return hit / (np.count_nonzero(support) * support[label])


class _Order:
    """Samples in the order of their score, for the AUC under any weights in one pass."""

    def __init__(self, positive: np.ndarray, score: np.ndarray, cluster: np.ndarray) -> None:
        order = np.argsort(score[~positive], kind="stable")
        negative = score[~positive][order]
        self._positives, self._negatives = cluster[positive], cluster[~positive][order]
        self._below = np.searchsorted(negative, score[positive], side="left")
        self._not_above = np.searchsorted(negative, score[positive], side="right")

    def auc(self, weights: np.ndarray) -> np.ndarray:
        """[B]: the weighted share of pairs in which the positive has the higher score; ties count half."""
        columns = np.ascontiguousarray(weights.T)  # [I, B]: rows are gathered fast
        cumulated = np.zeros((len(self._negatives) + 1, len(weights)))  # weight of the first n negatives
        np.cumsum(columns[self._negatives], axis=0, out=cumulated[1:])
        positive = columns[self._positives]
        wins = np.einsum("pb,pb->b", positive, cumulated[self._below])
        wins += np.einsum("pb,pb->b", positive, cumulated[self._not_above])
        return wins / (2 * positive.sum(axis=0) * cumulated[-1])
