"""Judging predictions: exact metrics on arrays.

Everything here counts each sample exactly once. A value that the data cannot give (the AUC of a class that does not
occur, the precision of a class that was never predicted) is ``None``, never a stand-in number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

ECE_BINS = 15
BOOTSTRAP_RESAMPLES = 2000
BOOTSTRAP_SEED = 0
NLL_FLOOR = 1e-12  # a float32 softmax can be exactly 0, whose logarithm JSON could not carry


def evaluate_predictions(
    label: np.ndarray, prob: np.ndarray, classes: Sequence[str], group: np.ndarray | None = None
) -> dict[str, Any]:
    """Every metric of one set of predictions, JSON-serialisable.

    Args:
        label: true class indices [N], integers in 0..K-1.
        prob: class probabilities [N, K], each row summing to 1. The predicted class is the row's argmax (of equal
            probabilities the first).
        classes: the K class names in order.
        group: cluster of each sample [N] (a patient, or one picture and its copies). Samples of one cluster are not
            independent, so the accuracy then also gets an interval that resamples whole clusters.

    Returns:
        ``accuracy`` with ``accuracy_wilson`` (95 % Wilson score interval, images taken as independent) and
        ``accuracy_cluster`` (95 % percentile cluster bootstrap; ``None`` without groups, with one group, or where no
        or every answer is right, which resampling cannot widen); ``balanced_accuracy`` (mean sensitivity); the macro
        averages ``sensitivity_macro``, ``specificity_macro``, ``precision_macro``, ``f1_macro``, ``auc_macro`` (plain
        means over the classes that occur in ``label``; ``None`` if undefined for one of them); ``kappa`` (Cohen,
        unweighted), ``mcc`` (Matthews), ``ece`` (top-label, ``ece_bins`` equal-width bins, Guo et al. 2017), ``brier``
        (sum over classes of squared errors, 0..2), ``nll`` (nats); ``confusion`` [K][K] (rows true, columns
        predicted); ``per_class``: n, predicted, sensitivity, specificity, precision, f1, auc (one against the rest);
        ``n``, ``groups`` (``None`` without groups), ``classes``.

    Raises:
        ValueError: arrays that do not fit together, labels outside the classes, or rows that are no probabilities.
    """
    import torch
    from torchmetrics.functional import classification as tm

    label, prob = _checked(label, prob, len(classes))
    k = len(classes)
    target, score = torch.from_numpy(label), torch.from_numpy(prob)
    predicted = prob.argmax(axis=1)
    guess = torch.from_numpy(predicted)
    confusion = tm.multiclass_confusion_matrix(guess, target, num_classes=k).numpy()
    support, called = confusion.sum(axis=1), confusion.sum(axis=0)
    hit, n = np.diag(confusion), len(label)

    def per_class(function: Any, defined: np.ndarray) -> list[float | None]:
        values = function(guess, target, num_classes=k, average=None).numpy()
        return [float(v) if ok else None for v, ok in zip(values, defined, strict=True)]

    # AUC alone is asked class by class: torchmetrics warns about, and scores 0, a class with no positives or negatives
    auc = [float(tm.binary_auroc(score[:, c], (target == c).long())) if 0 < support[c] < n else None for c in range(k)]
    by_metric = {
        "sensitivity": per_class(tm.multiclass_recall, support > 0),
        "specificity": per_class(tm.multiclass_specificity, support < n),
        "precision": per_class(tm.multiclass_precision, called > 0),
        "f1": per_class(tm.multiclass_f1_score, support + called > 0),
        "auc": auc,
    }
    macro = {f"{name}_macro": _macro(values, support > 0) for name, values in by_metric.items()}
    # With one class on either side both quotients are 0/0
    agreement_defined = np.count_nonzero(support) > 1 and np.count_nonzero(called) > 1
    onehot = np.eye(k)[label]
    correct = predicted == label
    return {
        "n": n,
        "groups": None if group is None else len(np.unique(np.asarray(group).astype(str))),
        "classes": list(classes),
        "accuracy": float(hit.sum() / n),
        "accuracy_wilson": wilson_interval(int(hit.sum()), n),
        "accuracy_cluster": None if group is None else cluster_interval(correct, group),
        "balanced_accuracy": macro["sensitivity_macro"],
        **macro,
        "kappa": float(tm.multiclass_cohen_kappa(guess, target, num_classes=k)) if agreement_defined else None,
        "mcc": float(tm.multiclass_matthews_corrcoef(guess, target, num_classes=k)) if agreement_defined else None,
        "ece": _expected_calibration_error(reliability(label, prob), n),
        "ece_bins": ECE_BINS,
        "brier": float(((prob - onehot) ** 2).sum(axis=1).mean()),
        "nll": float(-np.log(np.maximum(prob[np.arange(n), label], NLL_FLOOR)).mean()),
        "confusion": confusion.tolist(),
        "per_class": {
            name: {"n": int(support[c]), "predicted": int(called[c]), **{m: v[c] for m, v in by_metric.items()}}
            for c, name in enumerate(classes)
        },
    }


def wilson_interval(hits: int, n: int) -> list[float]:
    """95 % Wilson score interval of a proportion (Wilson 1927), as [low, high]."""
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def cluster_interval(correct: np.ndarray, group: np.ndarray) -> list[float] | None:
    """95 % percentile bootstrap interval of the accuracy over whole groups (Field & Welsh 2007), as [low, high].

    ``correct`` bool [N], ``group`` [N]. The seed is fixed: the same table gives the same interval. ``None`` where
    resampling says nothing: fewer than two groups, or no spread (all right, or all wrong).
    """
    from scipy.stats import bootstrap

    _, inverse = np.unique(np.asarray(group).astype(str), return_inverse=True)
    sizes = np.bincount(inverse).astype(np.float64)
    hits = np.bincount(inverse, weights=correct)
    if len(sizes) < 2 or hits.sum() in (0, sizes.sum()):
        return None
    result = bootstrap(
        (hits, sizes),
        lambda h, s, axis: h.sum(axis=axis) / s.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=BOOTSTRAP_RESAMPLES,
        batch=max(1, 10_000_000 // len(sizes)),  # bounds the memory of the resampled index to about 80 MB
        method="percentile",
        rng=BOOTSTRAP_SEED,
    )
    return [float(result.confidence_interval.low), float(result.confidence_interval.high)]


def reliability(label: np.ndarray, prob: np.ndarray, bins: int = ECE_BINS) -> dict[str, np.ndarray]:
    """Top-label reliability diagram: per equal-width confidence bin ``count``, mean ``confidence`` and ``accuracy``.

    Bins are (low, high] with edges i / ``bins``; empty bins have NaN confidence and accuracy.
    """
    label, prob = _checked(label, prob, prob.shape[1])
    confidence = prob.max(axis=1)
    correct = prob.argmax(axis=1) == label
    edges = np.linspace(0, 1, bins + 1, dtype=np.float32)
    bin_of = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        return {
            "edges": edges,
            "count": count,
            "confidence": np.bincount(bin_of, weights=confidence, minlength=bins) / count,
            "accuracy": np.bincount(bin_of, weights=correct, minlength=bins) / count,
        }


def _expected_calibration_error(bins: dict[str, np.ndarray], n: int) -> float:
    # Not torchmetrics' here: it puts confidences of exactly 1, common in float32, into a bin of their own
    return float(np.nansum(np.abs(bins["accuracy"] - bins["confidence"]) * bins["count"]) / n)


def _checked(label: np.ndarray, prob: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    label, prob = np.asarray(label), np.ascontiguousarray(prob, dtype=np.float32)
    if label.ndim != 1 or prob.shape != (len(label), k):
        raise ValueError(f"label {label.shape} and prob {prob.shape} do not fit {k} classes")
    if len(label) == 0:
        raise ValueError("no predictions to evaluate")
    if not np.issubdtype(label.dtype, np.integer) or label.min() < 0 or label.max() >= k:
        raise ValueError(f"labels must be integers in 0..{k - 1}, found {np.unique(label)[:10]}")
    # NaN fails both comparisons, so one test covers not-a-number, negative and unnormalised rows
    good = (prob >= 0).all(axis=1) & (np.abs(prob.sum(axis=1) - 1) < 1e-3)
    if not good.all():
        raise ValueError(f"{np.count_nonzero(~good)} rows of prob are no probabilities, first at {np.argmin(good)}")
    return label.astype(np.int64), prob


def _macro(values: list[float | None], present: np.ndarray) -> float | None:
    kept = [v for v, there in zip(values, present, strict=True) if there]
    return None if any(v is None for v in kept) else float(np.mean([v for v in kept if v is not None]))
