"""What the measures of a run say: means and differences with intervals over patients, and a verdict in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from brain_dist.explaining import perturbation, sanity
from brain_dist.explaining.measure import UNTRAINED, Measured
from brain_dist.explaining.methods import TITLES
from brain_dist.explaining.record import SCHEMA
from brain_dist.judging.clusters import (
    FEWEST_CLUSTERS,
    Resampled,
    number_clusters,
    resample,
    share_interval,
    wilson_interval,
)
from brain_dist.judging.refusal import Refusal

RESAMPLES = 2000


def summarise(measured: Measured) -> dict[str, Any]:
    """All numbers about the maps of a run, as JSON holds them.

    Every mean and difference has a 95 % interval that resamples whole groups of patients and copies; it is None if
    there are fewer than ten. Where all groups are alike it is from Wilson's, see :func:`_interval`.
    """
    cluster = number_clusters(measured.table.group)
    values, sources = measured.values, measured.sources
    names = [name for name, kind in sources if kind == "reference"]
    at = {source: position for position, source in enumerate(sources)}
    by_measure: dict[str, Any] = {}
    for m, name in enumerate(measured.measures):
        columns: dict[tuple[str, str], np.ndarray] = {source: values[:, position, m] for source, position in at.items()}
        for method in measured.methods:
            own = columns[method, "trained"]
            for other in names:
                columns[method, f"- {other}"] = own - columns[other, "reference"]
            columns[method, f"- {UNTRAINED}"] = own - columns[method, UNTRAINED]
        means = cluster_means(np.stack(list(columns.values()), axis=1), cluster)
        results = {key: _interval(means, position, share=key in at) for position, key in enumerate(columns)}
        by_measure[name] = {
            "better": perturbation.MEASURES.get(name, 1),
            "methods": {
                method: results[method, "trained"]
                | {"minus": {other: results[method, f"- {other}"] for other in (*names, UNTRAINED)}}
                for method in measured.methods
            },
            "references": {other: results[other, "reference"] for other in names},
            "untrained": {method: results[method, UNTRAINED] for method in measured.methods},
        }
    headline = measured.measures[0]
    right = measured.table.predicted == measured.table.label
    return {
        "schema": SCHEMA,
        "run": measured.table.run,
        "step": measured.table.step,
        "dataset_version": measured.table.dataset_version,
        "images": len(measured.table),
        "groups": int(cluster.max()) + 1,
        "right": int(right.sum()),
        "located": measured.masks is not None,
        "headline": headline,
        "methods": measured.methods,
        "empty": {method: int((heats.max(axis=(1, 2)) == 0).sum()) for method, heats in measured.maps.items()},
        "measures": by_measure,
        "verdicts": {method: verdict(by_measure[headline], headline, method) for method in measured.methods},
        "cascade": {
            method: {"steps": steps, "depends": sanity.depends_on_weights(steps)}
            for method, steps in measured.cascade.items()
        },
        "completeness": _completeness(measured.completeness),
        "agreement": {},
    }


def cluster_means(values: np.ndarray, cluster: np.ndarray) -> Resampled:
    """Means of the columns of ``values`` [N, M] over images, with clusters [N] resampled."""
    size = int(cluster.max()) + 1
    counts = np.bincount(cluster, minlength=size).astype(np.float64)
    sums = np.zeros((size, values.shape[1]))
    np.add.at(sums, cluster, values)
    return resample(lambda weights: (weights @ sums) / (weights @ counts)[:, None], cluster, RESAMPLES)


def _interval(means: Resampled, column: int, *, share: bool) -> dict[str, Any]:
    """The mean of a column and its interval, or None and the reason.

    Where all groups have the same mean, resampling has no spread. Then at least Wilson's lower limit of groups are like
    them, and the others may have any value: of 0 to 1 for a ``share``, of -1 to 1 for a difference or a correlation.
    """
    one = Resampled(*(array[..., column] for array in vars(means).values()))
    value = float(one.estimate)
    try:
        return {"value": value, **(share_interval(one) if share else {"interval": one.bca(), "interval_of": "BCa"})}
    except Refusal as refusal:
        groups = len(one.jackknife)
        if groups >= FEWEST_CLUSTERS and np.ptp(one.values) <= 1e-12:
            alike = wilson_interval(groups, groups)[0]
            limits = [alike * value + (1 - alike) * end for end in (0.0 if share else -1.0, 1.0)]
            return {"value": value, "interval": limits, "interval_of": "Wilson"}
        return {"value": value, "interval": None, "refused": str(refusal)}


def verdict(measure: dict[str, Any], name: str, method: str) -> dict[str, Any]:
    """Whether a method's maps are better than those of an untrained network by the headline measure.

    Returns:
        ``better``: True, False, or None if there are too few groups to tell; ``words``.
    """
    result, title = measure["methods"][method], TITLES[method]
    difference = result["minus"][UNTRAINED]
    interval = difference["interval"]
    numbers = f"{name} {result['value']:.2f}, of an untrained network {measure['untrained'][method]['value']:.2f}"
    if interval is None:
        words = f"{title} may not be better than an untrained network: {difference['refused']}; {numbers}"
        return {"better": None, "words": words}
    numbers += f" (difference {difference['value']:+.2f}, 95 % interval {interval[0]:+.2f} to {interval[1]:+.2f})"
    if min(measure["better"] * limit for limit in interval) > 0:
        return {"better": True, "words": f"{title} is better than an untrained network: {numbers}"}
    return {"better": False, "words": f"{title} is not better than an untrained network: {numbers}"}


def _completeness(errors: dict[str, np.ndarray] | None) -> dict[str, float] | None:
    if errors is None:
        return None
    relative = errors["error"] / np.maximum(np.abs(errors["difference"]), 1e-9)
    return {
        "median_error": float(np.median(errors["error"])),
        "largest_error": float(errors["error"].max()),
        "median_difference": float(np.median(np.abs(errors["difference"]))),
        "median_relative": float(np.median(relative)),
    }


def agree(measured: Measured, others: dict[str, np.ndarray]) -> dict[str, Any]:
    """Agreement with other runs, from the rank correlation of each image with each of them, run → [N]."""
    table = np.stack(list(others.values()), axis=1)
    empty = np.isnan(table)
    means = cluster_means(np.nan_to_num(table).mean(axis=1)[:, None], number_clusters(measured.table.group))
    by_run = {run: float(np.nan_to_num(values).mean()) for run, values in others.items()}
    return _interval(means, 0, share=False) | {"runs": by_run, "empty": int(empty.any(axis=1).sum())}
