"""The certificate of an export, ``parity.json``: how it compares with the run's network on the same test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from brain_dist.errors import Fault
from brain_dist.judging.clusters import ClassGroups, number_clusters, resample
from brain_dist.judging.refusal import Refusal
from brain_dist.judging.weighted import METRICS as TITLES
from brain_dist.judging.weighted import WeightedMetrics
from brain_dist.prediction.answers import softmax
from brain_dist.prediction.outputs import Outputs

TOLERANCE = 1e-4  # of a logit, or of the largest one of its image if that exceeds 1; for an export in 32 bits
MARGIN = 0.01  # of the metric that is judged, which an export may lose
METRICS = ("balanced_accuracy", "accuracy")  # the first that the images can judge decides whether an export is ready


@dataclass(frozen=True)
class Difference:
    """A metric of the export minus that of the run, on the same images.

    Attributes:
        value: the difference.
        interval: its paired 95 % interval (BCa) over groups of images (patients with their copies); None without one.
        refused: why it has no interval; None if it has one.
    """

    value: float
    interval: tuple[float, float] | None
    refused: str | None = None


@dataclass
class Certificate:
    """How an export compares with the run's network.

    Attributes:
        target: the format.
        images: number of test images.
        groups: number of groups of these: patients, with their copies.
        max_logit: largest absolute difference of a logit.
        other_labels: number of images with another predicted class.
        accuracy: of the export.
        run_accuracy: of the run's network.
        difference: metric → difference between the export and the run.
        judged_by: the metric that decided whether it is ready; None if the images can judge neither.
        limitation: why balanced accuracy was not judged, and what that leaves open; None if it was, or if it is not
            ready for want of any judgement.
        ready: whether the export can replace the run.
        reason: why it is not ready, or None.
        maps: whether it gives class activation maps. In 32 bits, the mean of a map over its cells was confirmed to be
            the logit but for a constant of the class.
        size: bytes of the exported folder without this certificate.
        speed: what batches took on the exporting machine, see :class:`brain_dist.exporting.speed.Speed`.
        slower: which form in 32 bits is faster, and how much, or None.
    """

    target: str
    images: int
    groups: int
    max_logit: float
    other_labels: int
    accuracy: float
    run_accuracy: float
    difference: dict[str, Difference]
    judged_by: str | None
    limitation: str | None
    ready: bool
    reason: str | None
    maps: bool
    size: int
    speed: list[dict[str, Any]] = field(default_factory=list)
    slower: str | None = None


def certify(
    target: str,
    actual: Outputs,
    expected: Outputs,
    label: np.ndarray,
    group: np.ndarray,
    classes: Sequence[str],
    size: int,
    *,
    exact: bool,
) -> Certificate:
    """Compare the outputs of an export with those of the run.

    Args:
        target: the format.
        actual: of the export.
        expected: of the run.
        label: true classes, int64 [N].
        group: names of the groups of the images [N].
        classes: names of the classes.
        size: bytes of the export.
        exact: whether the export computes what the run computes, in 32 bits.

    Raises:
        Fault: an exact export differs from the run, or the maps do not add up to the logits.
    """
    from brain_dist.exporting.graph import TOLERANCE as EXACT_MAPS
    from brain_dist.exporting.graph import maps_add_up

    own, other = expected.logits.argmax(axis=1), actual.logits.argmax(axis=1)
    differences = np.abs(actual.logits - expected.logits).max(axis=1)
    scale = np.maximum(1, np.abs(expected.logits).max(axis=1))
    largest, changed = float(differences.max()), int((own != other).sum())
    if exact and ((differences > TOLERANCE * scale).any() or changed):
        raise Fault(
            f"{target}: a logit differs by {largest:.2g} from the run's and {changed} of {len(label)} images get"
            " another class, so the export is not kept"
        )
    cluster = number_clusters(group)
    difference = _differences(actual.logits, expected.logits, label, cluster, classes)
    judged_by = next((name for name in METRICS if difference[name].interval is not None), None)
    reason = _reason(difference, judged_by)
    maps = actual.maps is not None
    if actual.maps is not None and exact and maps_add_up(actual.maps, actual.logits) > EXACT_MAPS:
        raise Fault(f"{target}: the class activation maps do not add up to the logits, so the export is not kept")
    return Certificate(
        target=target,
        images=len(label),
        groups=int(cluster.max()) + 1,
        max_logit=largest,
        other_labels=changed,
        accuracy=float((other == label).mean()),
        run_accuracy=float((own == label).mean()),
        difference=difference,
        judged_by=judged_by,
        limitation=_limitation(difference, judged_by),
        ready=reason is None,
        reason=reason,
        maps=maps,
        size=size,
    )


def _differences(
    actual: np.ndarray, expected: np.ndarray, label: np.ndarray, cluster: np.ndarray, classes: Sequence[str]
) -> dict[str, Difference]:
    """Differences of the metrics, paired by group."""
    if np.array_equal(actual.argmax(axis=1) == label, expected.argmax(axis=1) == label):
        return {name: Difference(0.0, (0.0, 0.0)) for name in METRICS}
    sides = [
        WeightedMetrics(label, np.stack([softmax(row) for row in logits]), cluster, METRICS)
        for logits in (actual, expected)
    ]
    both = resample(lambda weights: np.concatenate([side(weights) for side in sides], axis=1), cluster)
    groups = ClassGroups.count(label, cluster, classes)
    differences = {}
    for column, name in enumerate(METRICS):
        paired = both.mean([column]) - both.mean([column + len(METRICS)])
        value = float(paired.estimate)
        try:
            groups.check(name)
            low, high = paired.bca()
            differences[name] = Difference(value, (low, high))
        except Refusal as refusal:
            differences[name] = Difference(value, None, str(refusal))
    return differences


def _reason(difference: Mapping[str, Difference], judged_by: str | None) -> str | None:
    """Why an export with these differences is not ready; None if it is."""
    if judged_by is None:
        return f"its loss of accuracy cannot be judged: {difference['accuracy'].refused}"
    judged = difference[judged_by]
    if judged.interval is not None and judged.interval[0] < -MARGIN:
        return f"it may lose more than {100 * MARGIN:g} point of {TITLES[judged_by].title}: {_points(judged)}"
    return None


def _limitation(difference: Mapping[str, Difference], judged_by: str | None) -> str | None:
    """What another metric than balanced accuracy leaves open; None if that was judged, or nothing was."""
    if judged_by in (None, METRICS[0]):
        return None
    assert judged_by is not None
    return (
        f"balanced accuracy cannot be judged here ({difference[METRICS[0]].refused}); {TITLES[judged_by].title} was"
        f" judged instead ({_points(difference[judged_by])}), which says little about a class with few images"
    )


def _points(difference: Difference) -> str:
    """A difference in percentage points, with its interval."""
    assert difference.interval is not None
    low, high = (100 * value for value in difference.interval)
    return f"{100 * difference.value:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"
