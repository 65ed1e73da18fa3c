"""Judge a calibration on a predictions table: errors before and after, coverage of sets, selective prediction."""

from __future__ import annotations

from typing import Any

import numpy as np

from brain_dist.calibration.conformal import METHODS, coverage_law
from brain_dist.calibration.measures import (
    ERRORS,
    MEASURES,
    NO_INTERVAL,
    brier_parts,
    measures_statistic,
    null_errors,
    smooth_error,
    verdict,
)
from brain_dist.calibration.record import Calibration
from brain_dist.calibration.scaling import scaled
from brain_dist.calibration.selective import COVERAGES, accuracy_statistic, area_under_risk, risk_curve
from brain_dist.calibration.subgroups import subgroup_table
from brain_dist.judging.clusters import Resampled, number_clusters, resample
from brain_dist.judging.predictions import Predictions
from brain_dist.judging.refusal import Refusal

RESAMPLES = 2000
CURVE_POINTS = 101


def judge(calibration: Calibration, predictions: Predictions) -> dict[str, Any]:
    """All numbers about one predictions table, JSON-serialisable.

    Args:
        calibration: fitted on logits of the same classes.
        predictions: the table.

    Returns:
        ``n``, ``groups``, ``datasets``, ``accuracy``; ``scaling``: for ``none``, ``temperature`` and ``vector``
        (without those that were refused) see :func:`judge_scaling`; ``change`` of each measure by the temperature, with
        its paired 95 % interval (calibration errors: why there is none); ``conformal``: for each method see
        :func:`judge_sets`; ``selective``.
    """
    label, logit = predictions.label, predictions.logit
    cluster = number_clusters(predictions.group)
    probabilities = {"none": scaled(logit)}
    if not isinstance(calibration.temperature, str):
        probabilities["temperature"] = calibration.probabilities(logit)
    vector = calibration.vector_probabilities(logit)
    if vector is not None:
        probabilities["vector"] = vector
    statistics = {name: measures_statistic(label, prob, cluster) for name, prob in probabilities.items()}
    resampled = {name: resample(statistic, cluster, RESAMPLES) for name, statistic in statistics.items()}
    change = {}
    if "temperature" in resampled:
        for m, name in enumerate(MEASURES):
            difference = resampled["temperature"].mean([m]) - resampled["none"].mean([m])
            change[name] = {
                "value": float(difference.estimate),
                "interval": NO_INTERVAL if name in ERRORS else interval(difference),
            }
    return {
        "n": len(predictions),
        "groups": int(cluster.max()) + 1,
        "datasets": sorted(set(predictions.dataset)),
        "accuracy": float((predictions.predicted == label).mean()),
        "scaling": {name: judge_scaling(label, prob, cluster, resampled[name]) for name, prob in probabilities.items()},
        "change": change,
        "conformal": {method: judge_sets(calibration, method, predictions) for method in METHODS},
        "selective": judge_selective(calibration, predictions),
    }


def judge_scaling(label: np.ndarray, prob: np.ndarray, cluster: np.ndarray, resampled: Resampled) -> dict[str, Any]:
    """The measures of labels [N] and probabilities [N, K], with what chance gives.

    Returns:
        For each of :data:`MEASURES` its ``value`` and 95 % ``interval`` over groups [N]; calibration errors have
        instead of it the reason, and the ``null`` values of right probabilities; ``smooth_ece``; ``brier_parts``; mean
        ``confidence``; ``accuracy``; ``verdict`` on the ECE.
    """
    null = null_errors(prob, cluster)
    confidence, correct = prob.max(axis=1), prob.argmax(axis=1) == label
    result: dict[str, Any] = {}
    for m, name in enumerate(MEASURES):
        single = resampled.mean([m])
        result[name] = {"value": float(single.estimate), "interval": interval(single)}
        if name in ERRORS:
            result[name] |= {"interval": NO_INTERVAL, "null": null[name]}
    return result | {
        "smooth_ece": smooth_error(confidence, correct),
        "brier_parts": brier_parts(label, prob),
        "confidence": float(confidence.mean()),
        "accuracy": float(correct.mean()),
        "verdict": verdict(result["ece"]["value"], null["ece"]),
    }


def judge_sets(calibration: Calibration, method: str, predictions: Predictions) -> dict[str, Any]:
    """Coverage and size of the sets of one method; a patient counts once, as in the guarantee.

    Returns:
        ``refused``, or: ``coverage`` (``value``, ``interval``), ``coverage_images`` (each image counts once), ``law``
        (of the coverage, None if class-conditional), ``mean_size``, ``sizes`` (share of sets of 0 to K classes),
        ``by_class`` and ``by_dataset`` (``n``, ``groups``, ``coverage``), ``holds`` (whether the measured coverage is
        at least the lower limit that the law expects; None without a law).
    """
    sets, thresholds = calibration.sets(predictions.logit, method), calibration.thresholds[method]
    if sets is None or isinstance(thresholds, str):
        return {"refused": thresholds}
    covered = sets[np.arange(len(sets)), predictions.label].astype(np.float64)
    coverage, limits = _group_mean(covered, predictions.group)
    groups = len(set(predictions.group))
    law = None if method == "class_conditional" else coverage_law(thresholds[0], groups)
    size = sets.sum(axis=1)
    parts = {
        "by_class": [(name, predictions.label == c) for c, name in enumerate(predictions.classes)],
        "by_dataset": [(name, predictions.dataset == name) for name in sorted(set(predictions.dataset))],
    }
    return {
        "coverage": {"value": coverage, "interval": limits},
        "coverage_images": float(covered.mean()),
        "law": law,
        "holds": None if law is None else bool(coverage >= law["measured_range"][0] - 1e-9),
        "mean_size": float(size.mean()),
        "sizes": (np.bincount(size, minlength=sets.shape[1] + 1) / len(size)).tolist(),
        **{
            part: {
                name: {
                    "n": int(mask.sum()),
                    "groups": len(set(predictions.group[mask])),
                    "coverage": _group_mean(covered[mask], predictions.group[mask])[0] if mask.any() else None,
                }
                for name, mask in masks
            }
            for part, masks in parts.items()
        },
    }


def judge_selective(calibration: Calibration, predictions: Predictions) -> dict[str, Any]:
    """Accuracy among the most confident images, by calibrated confidence.

    Returns:
        ``area``, see :func:`area_under_risk`; ``accuracy``: for each coverage its ``value`` and 95 % ``interval``;
        ``curve``: ``coverage`` and ``risk`` at up to 101 points.
    """
    prob = calibration.probabilities(predictions.logit)
    confidence, correct = prob.max(axis=1), prob.argmax(axis=1) == predictions.label
    cluster = number_clusters(predictions.group)
    resampled = resample(accuracy_statistic(correct, confidence, cluster), cluster, RESAMPLES)
    risk = risk_curve(correct, confidence)
    points = np.unique(np.linspace(0, len(risk) - 1, CURVE_POINTS).astype(int))
    return {
        "area": area_under_risk(correct, confidence),
        "accuracy": [
            {"coverage": coverage, "value": float(single.estimate), "interval": interval(single)}
            for coverage, single in ((each, resampled.mean([c])) for c, each in enumerate(COVERAGES))
        ],
        "curve": {"coverage": ((points + 1) / len(risk)).tolist(), "risk": risk[points].tolist()},
    }


def judge_subgroups(calibration: Calibration, predictions: Predictions, values: np.ndarray) -> dict[str, Any]:
    """:func:`subgroup_table` of the calibrated probabilities, by values [N]."""
    return subgroup_table(predictions.label, calibration.probabilities(predictions.logit), predictions.group, values)


def interval(single: Resampled) -> list[float] | str:
    """95 % percentile interval of a single statistic, or the reason why there is none."""
    try:
        return single.percentile()
    except Refusal as refusal:
        return str(refusal)


def _group_mean(value: np.ndarray, group: np.ndarray) -> tuple[float, list[float] | str]:
    """Mean of the groups' means of values [N], with its interval."""
    cluster = number_clusters(group)
    means = np.bincount(cluster, weights=value) / np.bincount(cluster)
    resampled = resample(lambda weights: (weights @ means / weights.sum(axis=1))[:, None], cluster, RESAMPLES)
    single = resampled.mean([0])
    return float(single.estimate), interval(single)
