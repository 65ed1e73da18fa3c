"""The certificate of an export, ``parity.json``: how it compares with the run's network on the same test images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from brain_dist.errors import Fault
from brain_dist.judging.clusters import number_clusters, resample
from brain_dist.judging.refusal import Refusal
from brain_dist.judging.weighted import WeightedMetrics
from brain_dist.prediction.answers import softmax
from brain_dist.prediction.outputs import Outputs

TOLERANCE = 1e-4  # of a logit, or of the largest one of its image if that exceeds 1; for an export in 32 bits
MARGIN = 0.01  # of balanced accuracy, which an export may lose
METRICS = ("accuracy", "balanced_accuracy")


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
    ready: bool
    reason: str | None
    maps: bool
    size: int
    speed: list[dict[str, Any]] = field(default_factory=list)
    slower: str | None = None


def certify(
    target: str, actual: Outputs, expected: Outputs, label: np.ndarray, group: np.ndarray, size: int, *, exact: bool
) -> Certificate:
    """Compare the outputs of an export with those of the run.

    Args:
        target: the format.
        actual: of the export.
        expected: of the run.
        label: true classes, int64 [N].
        group: names of the groups of the images [N].
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
    difference = _differences(actual.logits, expected.logits, label, cluster, changed)
    reason = _reason(difference["balanced_accuracy"])
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
        ready=reason is None,
        reason=reason,
        maps=maps,
        size=size,
    )


def _differences(
    actual: np.ndarray, expected: np.ndarray, label: np.ndarray, cluster: np.ndarray, changed: int
) -> dict[str, Difference]:
    """Differences of the metrics, paired by group."""
    if not changed:
        return {name: Difference(0.0, (0.0, 0.0)) for name in METRICS}
    sides = [
        WeightedMetrics(label, np.stack([softmax(row) for row in logits]), cluster, METRICS)
        for logits in (actual, expected)
    ]
    both = resample(lambda weights: np.concatenate([side(weights) for side in sides], axis=1), cluster)
    differences = {}
    for column, name in enumerate(METRICS):
        paired = both.mean([column]) - both.mean([column + len(METRICS)])
        value = float(paired.estimate)
        try:
            low, high = paired.bca()
            differences[name] = Difference(value, (low, high))
        except Refusal as refusal:
            differences[name] = Difference(value, None, str(refusal))
    return differences


def _reason(balanced: Difference) -> str | None:
    """Why an export with this difference of balanced accuracy is not ready; None if it is."""
    if balanced.interval is None:
        return f"its loss of balanced accuracy cannot be judged: {balanced.refused}"
    if balanced.interval[0] < -MARGIN:
        low, high = (100 * value for value in balanced.interval)
        return (
            f"it may lose more than {100 * MARGIN:g} point of balanced accuracy: {100 * balanced.value:+.1f} points,"
            f" 95 % interval {low:+.1f} to {high:+.1f}"
        )
    return None
