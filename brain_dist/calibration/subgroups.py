"""Accuracy in subgroups, such as the scanner or the sex of the patient, and whether they differ by more than chance."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from brain_dist.calibration.measures import binned_gap
from brain_dist.errors import UserError
from brain_dist.judging.clusters import number_clusters, resample
from brain_dist.judging.metrics import ECE_BINS, width_bins
from brain_dist.judging.predictions import Predictions
from brain_dist.store.dataset import Dataset

FEWEST_GROUPS = 10  # a smaller subgroup is shown, but does not count in the gap
MOST_VALUES = 12  # of a column; more numbers are divided at their quartiles
PERMUTATIONS = 2000
UNKNOWN = "not known"


def attribute_values(column: str, predictions: Predictions, dataset: Dataset) -> np.ndarray:
    """Value of a column of the index, or of a key of its JSON ``attributes``, for each prediction, str [N].

    Numbers with many values are divided at their quartiles.

    Raises:
        UserError: the column or attribute does not exist or has too many values.
    """
    attributes = [json.loads(dataset.columns["attributes"][row]) for row in predictions.row]
    known = sorted({key for each in attributes for key in each})
    if column in known:
        values = [each.get(column) for each in attributes]
    elif column in dataset.columns:
        values = dataset.columns[column][predictions.row].tolist()
    else:
        raise UserError(
            f"--by {column}: {dataset.root} has no such column or attribute; its attributes are"
            f" {', '.join(known) or 'none'}, its columns {', '.join(dataset.columns)}"
        )
    texts = np.array([UNKNOWN if _is_missing(value) else str(value) for value in values], dtype=object)
    distinct = set(texts) - {UNKNOWN}
    if len(distinct) <= MOST_VALUES:
        return texts
    try:
        numbers = np.array([np.nan if text == UNKNOWN else float(text) for text in texts])
    except ValueError:
        raise UserError(f"--by {column}: it has {len(distinct)} different values; choose one with fewer") from None
    edges = np.unique(np.nanquantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    part = np.clip(np.searchsorted(edges, numbers, side="left"), 1, len(edges) - 1)
    names = [f"{edge:g}" for edge in edges]
    if len(set(names)) < len(names) or any("e+" in name for name in names):  # such as dates, of eight digits
        names = [f"{edge:.15g}" for edge in edges]
    ranges = [f"{'' if i == 1 else 'above '}{names[i - 1]} to {names[i]}" for i in part]
    return np.where(texts == UNKNOWN, UNKNOWN, np.array(ranges, dtype=object))


def subgroup_table(label: np.ndarray, prob: np.ndarray, group: np.ndarray, value: np.ndarray) -> dict[str, Any]:
    """Accuracy and confidence in each subgroup, and the gap between the best and the worst.

    The largest of several differences is large by chance alone, so the gap stands beside the gaps under permuted
    values. What is permuted is the value of all images that a patient has in one subgroup: inside a patient with
    several values, such as planes, and among the patients with one value, such as a sex.

    Args:
        label: true classes, int64 [N].
        prob: probabilities [N, K].
        group: patient of each image, str [N].
        value: subgroup of each image, str [N].

    Returns:
        ``rows``: for each subgroup ``name``, ``n``, ``groups``, ``accuracy`` with its 95 % ``interval`` over groups (or
        None), ``confidence`` (mean), ``ece``, and whether it is ``small``; ``gap``: None with fewer than two large
        subgroups, else the ``difference``, its 95 % ``interval``, ``permuted_mean`` and ``permuted_p95``, ``p``, and
        ``several`` (patients with several values, inside whom they were permuted).
    """
    names = sorted(set(value), key=_place)
    cluster, code = number_clusters(group), np.array([names.index(each) for each in value])
    correct = (prob.argmax(axis=1) == label).astype(np.float64)
    confidence = prob.max(axis=1).astype(np.float64)
    shape = (int(cluster.max()) + 1, len(names))
    cell = cluster * len(names) + code
    hits, size = (
        np.bincount(cell, weights=weights, minlength=shape[0] * shape[1]).reshape(shape)
        for weights in (correct, np.ones_like(correct))
    )
    groups = (size > 0).sum(axis=0)
    large = np.flatnonzero((groups >= FEWEST_GROUPS) & (np.array(names) != UNKNOWN))

    def statistic(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            accuracy = (weights @ hits) / (weights @ size)
        gap = np.ptp(accuracy[:, large], axis=1) if len(large) else np.full(len(weights), np.nan)
        return np.concatenate([accuracy, gap[:, None]], axis=1)

    resampled = resample(statistic, cluster, PERMUTATIONS)
    rows = []
    for c, name in enumerate(names):
        mask = code == c
        rows.append(
            {
                "name": name,
                "n": int(mask.sum()),
                "groups": int(groups[c]),
                "accuracy": float(correct[mask].mean()),
                "interval": _interval(resampled.values[:, c]) if groups[c] >= FEWEST_GROUPS else None,
                "confidence": float(confidence[mask].mean()),
                "ece": binned_gap(confidence[mask], correct[mask], width_bins(confidence[mask], ECE_BINS)),
                "small": bool(groups[c] < FEWEST_GROUPS),
            }
        )
    gap = None
    if len(large) > 1:
        permuted = _permuted_gaps(hits[:, large], size[:, large])
        difference = float(resampled.estimate[-1])
        gap = {
            "difference": difference,
            "interval": _interval(resampled.values[:, -1]),
            "permuted_mean": float(permuted.mean()),
            "permuted_p95": float(np.quantile(permuted, 0.95)),
            "several": int(((size[:, large] > 0).sum(axis=1) > 1).sum()),
            "p": float((1 + (permuted >= difference - 1e-12).sum()) / (1 + len(permuted))),
        }
    return {"rows": rows, "gap": gap}


def _is_missing(value: object) -> bool:
    return value is None or str(value).lower() in ("", "nan")


def _place(name: str) -> tuple[bool, list[str | float]]:
    """Orders names with numbers by these, and what is not known last."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)  # text and numbers by turns
    return name == UNKNOWN, [float(part) if number % 2 else part for number, part in enumerate(parts)]


def _interval(values: np.ndarray) -> list[float] | None:
    values = values[~np.isnan(values)]
    return [float(limit) for limit in np.quantile(values, [0.025, 0.975])] if np.ptp(values) > 0 else None


def _permuted_gaps(hits: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Gaps [PERMUTATIONS] if the subgroups [I, S] of the patients' images are permuted; ``size`` counts the images."""
    patient, subgroup = np.nonzero(size)
    several = (size > 0).sum(axis=1)[patient] > 1
    block = np.where(several, patient, -1)  # patients with one value are one block
    order = np.argsort(block, kind="stable")
    patient, subgroup, block = patient[order], subgroup[order], block[order]
    unit_hits, unit_size = hits[patient, subgroup], size[patient, subgroup]
    rng, gaps = np.random.default_rng(0), []
    for _ in range(PERMUTATIONS):
        permuted = subgroup[np.lexsort((rng.random(len(block)), block))]  # inside each block
        gaps.append(np.ptp(np.bincount(permuted, unit_hits) / np.bincount(permuted, unit_size)))
    return np.array(gaps)
