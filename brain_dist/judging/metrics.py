"""Metrics of predictions, computed exactly on arrays.

Each sample counts exactly once. A metric that is undefined for the data (the AUC of a class that does not occur, the
precision of a class that was never predicted) is None, never a substitute number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from brain_dist.judging.clusters import (
    BLOCK_VALUES,
    Resampled,
    number_clusters,
    share_interval,
    weight_blocks,
    wilson_interval,
)
from brain_dist.judging.refusal import or_refusal

ECE_BINS = 15
BOOTSTRAP_RESAMPLES = 2000
BOOTSTRAP_SEED = 0
NLL_FLOOR = 1e-12  # a float32 softmax can be exactly 0, and JSON has no infinity for its logarithm


def evaluate_predictions(
    label: np.ndarray, prob: np.ndarray, classes: Sequence[str], group: np.ndarray | None = None
) -> dict[str, Any]:
    """All metrics of one set of predictions, JSON-serialisable.

    Args:
        label: true class indices [N], integers in 0..K-1.
        prob: class probabilities [N, K], each row summing to 1. The predicted class is the row's argmax (of equal
            probabilities the first).
        classes: the K class names in order.
        group: cluster of each sample [N] (a patient, or an image and its copies). Samples of a cluster are not
            independent, so the accuracy's interval resamples whole clusters. None takes the samples for independent.

    Returns:
        ``accuracy``; ``accuracy_interval`` (95 %, see :func:`accuracy_interval`, or its reason as ``refused``; without
        groups Wilson's interval of N trials); ``balanced_accuracy`` (mean sensitivity); the macro averages
        ``sensitivity_macro``, ``specificity_macro``, ``precision_macro``, ``f1_macro``, ``auc_macro`` (means over the
        classes that occur in ``label``; None if undefined for one of them); ``kappa`` (Cohen 1960, unweighted); ``mcc``
        (Matthews correlation coefficient, Gorodkin 2004 for K classes); ``ece`` (top-label, ``ece_bins`` equal-width
        bins, Guo et al. 2017); ``brier`` (Brier 1950: sum of squared errors over the classes, 0..2); ``nll`` (nats);
        ``confusion`` [K][K] (rows true, columns predicted); ``per_class``: n, predicted, sensitivity, specificity,
        precision, f1, auc (one against the rest); ``n``; ``groups`` (None without groups); ``classes``.

    Raises:
        ValueError: the arrays do not fit together, a label is outside the classes, or a row is not a probability
            distribution.
    """
    import torch
    from torchmetrics.functional import classification as tm

    label, prob = _validated(label, prob, len(classes))
    n, k = prob.shape
    predicted = prob.argmax(axis=1)
    correct = predicted == label
    target, guess = torch.from_numpy(label), torch.from_numpy(predicted)
    confusion = tm.multiclass_confusion_matrix(guess, target, num_classes=k).numpy()
    support, called = confusion.sum(axis=1), confusion.sum(axis=0)
    class_metrics = _class_metrics(label, prob, support, called)
    macro = {f"{name}_macro": _macro(values, support > 0) for name, values in class_metrics.items()}
    # kappa and MCC are 0/0 if all labels or all predictions are of one class
    defined = np.count_nonzero(support) > 1 and np.count_nonzero(called) > 1
    return {
        "n": n,
        "groups": None if group is None else len(np.unique(np.asarray(group).astype(str))),
        "classes": list(classes),
        "accuracy": float(correct.mean()),
        "accuracy_interval": {"interval": wilson_interval(int(correct.sum()), n), "interval_of": "Wilson"}
        if group is None
        else or_refusal(accuracy_interval, correct, group),
        "balanced_accuracy": macro["sensitivity_macro"],
        **macro,
        "kappa": float(tm.multiclass_cohen_kappa(guess, target, num_classes=k)) if defined else None,
        "mcc": float(tm.multiclass_matthews_corrcoef(guess, target, num_classes=k)) if defined else None,
        "ece": _expected_calibration_error(reliability(label, prob), n),
        "ece_bins": ECE_BINS,
        "brier": float(((prob - np.eye(k)[label]) ** 2).sum(axis=1).mean()),
        "nll": float(-np.log(np.maximum(prob[np.arange(n), label], NLL_FLOOR)).mean()),
        "confusion": confusion.tolist(),
        "per_class": {
            name: {"n": int(support[c]), "predicted": int(called[c]), **{m: v[c] for m, v in class_metrics.items()}}
            for c, name in enumerate(classes)
        },
    }


def _class_metrics(
    label: np.ndarray, prob: np.ndarray, support: np.ndarray, called: np.ndarray
) -> dict[str, list[float | None]]:
    """Metric → its value for each of K classes, None if undefined.

    ``support`` [K]: samples of each class; ``called`` [K]: samples predicted as each class.
    """
    import torch
    from torchmetrics.functional import classification as tm

    n, k = prob.shape
    target, score = torch.from_numpy(label), torch.from_numpy(prob)
    guess = torch.from_numpy(prob.argmax(axis=1))

    def values(function: Any, defined: np.ndarray) -> list[float | None]:
        computed = function(guess, target, num_classes=k, average=None).numpy()
        return [float(value) if ok else None for value, ok in zip(computed, defined, strict=True)]

    # one class at a time: torchmetrics warns about a class without positives or negatives, and scores it 0
    auc = [float(tm.binary_auroc(score[:, c], (target == c).long())) if 0 < support[c] < n else None for c in range(k)]
    return {
        "sensitivity": values(tm.multiclass_recall, support > 0),
        "specificity": values(tm.multiclass_specificity, support < n),
        "precision": values(tm.multiclass_precision, called > 0),
        "f1": values(tm.multiclass_f1_score, support + called > 0),
        "auc": auc,
    }


def _macro(values: list[float | None], present: np.ndarray) -> float | None:
    """Mean over the classes that occur; None if undefined for one of them."""
    occurring = [value for value, occurs in zip(values, present, strict=True) if occurs]
    defined = [value for value in occurring if value is not None]
    return float(np.mean(defined)) if len(defined) == len(occurring) else None


def accuracy_interval(correct: np.ndarray, group: np.ndarray) -> dict[str, Any]:
    """95 % interval of the accuracy over whole groups: percentiles of 2,000 resamples (Field & Welsh 2007).

    The seed is fixed, so the same table gives the same interval.

    Args:
        correct: bool [N], whether each prediction is correct.
        group: cluster of each sample [N].

    Returns:
        ``interval`` [low, high], and ``interval_of``: "percentile", or "Wilson" if all or no predictions are correct.

    Raises:
        Refusal: there are fewer than ten groups, or all resamples give the same value.
    """
    cluster = number_clusters(group)
    size, hits = np.bincount(cluster).astype(np.float64), np.bincount(cluster, weights=correct)
    blocks = weight_blocks(len(size), BOOTSTRAP_RESAMPLES, BOOTSTRAP_SEED, max(1, BLOCK_VALUES // len(size)))
    values = np.concatenate([(weights @ hits) / (weights @ size) for weights in blocks])
    with np.errstate(invalid="ignore"):  # nothing is left without the only group
        jackknife = (hits.sum() - hits) / (size.sum() - size)
    return share_interval(Resampled(correct.mean(), values, jackknife), method="percentile")


def reliability(label: np.ndarray, prob: np.ndarray, bins: int = ECE_BINS) -> dict[str, np.ndarray]:
    """Top-label reliability diagram (Guo et al. 2017) over equal-width confidence bins.

    Args:
        label: true class indices [N].
        prob: class probabilities [N, K].
        bins: number of bins; bin i is (i / bins, (i + 1) / bins].

    Returns:
        ``edges`` [bins + 1]; ``count``, mean ``confidence`` and ``accuracy`` [bins], NaN in empty bins.

    Raises:
        ValueError: as :func:`evaluate_predictions`.
    """
    label, prob = _validated(label, prob, prob.shape[1])
    confidence = prob.max(axis=1)
    correct = prob.argmax(axis=1) == label
    bin_index = width_bins(confidence, bins)
    count = np.bincount(bin_index, minlength=bins)
    with np.errstate(invalid="ignore"):
        return {
            "edges": np.linspace(0, 1, bins + 1, dtype=np.float32),
            "count": count,
            "confidence": np.bincount(bin_index, weights=confidence, minlength=bins) / count,
            "accuracy": np.bincount(bin_index, weights=correct, minlength=bins) / count,
        }


def width_bins(value: np.ndarray, bins: int) -> np.ndarray:
    """Equal-width bin of each value [N]; bin i is (i / bins, (i + 1) / bins], and 0 is in the first.

    In float32, in which 0.3 lies on the edge 3 / 10 and not beside it.
    """
    edges = np.linspace(0, 1, bins + 1, dtype=np.float32)
    return np.clip(np.searchsorted(edges, np.asarray(value, dtype=np.float32), side="left") - 1, 0, bins - 1)


def _expected_calibration_error(bins: dict[str, np.ndarray], n: int) -> float:
    # not torchmetrics': it puts confidences of exactly 1, common in float32, into a separate bin
    return float(np.nansum(np.abs(bins["accuracy"] - bins["confidence"]) * bins["count"]) / n)


def _validated(label: np.ndarray, prob: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """``label`` as int64 [N] and ``prob`` [N, k] as float32 or, of doubles, float64; ValueError if they are invalid."""
    label, prob = np.asarray(label), np.ascontiguousarray(prob)
    if prob.dtype != np.float64:
        prob = prob.astype(np.float32)
    if label.ndim != 1 or prob.shape != (len(label), k):
        raise ValueError(f"label {label.shape} and prob {prob.shape} do not fit {k} classes")
    if len(label) == 0:
        raise ValueError("no predictions to evaluate")
    if not np.issubdtype(label.dtype, np.integer) or label.min() < 0 or label.max() >= k:
        raise ValueError(f"labels must be integers in 0..{k - 1}, not {np.unique(label)[:10]}")
    # NaN fails both comparisons
    valid = (prob >= 0).all(axis=1) & (np.abs(prob.sum(axis=1) - 1) < 1e-3)
    if not valid.all():
        raise ValueError(
            f"{np.count_nonzero(~valid)} rows of prob are not probabilities that sum to 1, first at {np.argmin(valid)}"
        )
    return label.astype(np.int64), prob
