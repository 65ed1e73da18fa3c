"""How much a network's answers change without the tumour, with intervals over patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from brain_dist.judging.clusters import number_clusters, resample, share_interval
from brain_dist.judging.predictions import Predictions
from brain_dist.judging.refusal import Refusal

RESAMPLES = 2000
NO_TUMOUR = "notumor"
REASONS = ("overlap", "outside")  # why an image has no control


def summarise(
    table: Predictions, prob: np.ndarray, control: np.ndarray, change: np.ndarray, *, classes: Sequence[str]
) -> dict[str, Any]:
    """The evidence test in numbers, of all images and of each class.

    Args:
        table: the images, with their true classes and groups [N].
        prob: probabilities [N, 3, K] for the original, without the tumour, and for the control (NaN without one).
        control: str [N], ``used`` or the reason why there is none.
        change: gray values by which erasing changed the tumour and the control, [N, 2], NaN without one.
        classes: names of the K classes.

    Returns:
        ``all``, and ``classes``: name → the same of its images. Each has ``images``, ``groups``, ``controls``,
        ``without_control`` (reason → images), ``right`` (images that are predicted right), ``right_controls`` (those
        with a control), ``change`` (tumour and control), ``prob`` (mean probability of the true class: original,
        without the tumour), ``called_notumor`` (share of the right images that are called tumour-free without their
        tumour; None without that class), and with ``value`` and ``interval`` (95 % over groups; None and ``refused`` if
        it cannot be computed; of a share of 0 or 1 Wilson's, as ``interval_of`` says):

        - ``fall``: by how much the probability of the true class falls without the tumour, ``fall_control``: with the
          control, ``fall_difference``: the first minus the second, of the images with a control;
        - ``survive``: share of the right images that keep their class without the tumour, ``survive_control``: with the
          control, ``survive_difference``: the second minus the first, of the right images with a control.
    """
    true = prob[np.arange(len(table)), :, table.label].astype(np.float64)
    predicted = np.nan_to_num(prob).argmax(axis=2)
    used = control == "used"
    no_tumour = classes.index(NO_TUMOUR) if NO_TUMOUR in classes else None

    def part(rows: np.ndarray) -> dict[str, Any]:
        """The numbers of some images, bool [N]."""
        right = rows & (predicted[:, 0] == table.label)
        kept = (predicted == table.label[:, None]).astype(np.float64)
        both, right_both = rows & used, right & used
        group = table.group
        fall, kept_share = true[:, :1] - true[:, 1:], kept[:, 1:]
        return {
            "images": int(rows.sum()),
            "groups": len(set(group[rows])),
            "controls": int(both.sum()),
            "without_control": {reason: int((control[rows] == reason).sum()) for reason in REASONS},
            "right": int(right.sum()),
            "right_controls": int(right_both.sum()),
            "change": [_mean(change[rows, 0]), _mean(change[both, 1])],
            "prob": [_mean(true[rows, 0]), _mean(true[rows, 1])],
            "called_notumor": None if no_tumour is None else _mean(predicted[right, 1] == no_tumour),
            "fall": _estimate(fall[:, 0], group, rows),
            "fall_control": _estimate(fall[:, 1], group, both),
            "fall_difference": _estimate(fall[:, 0] - fall[:, 1], group, both),
            "survive": _estimate(kept_share[:, 0], group, right, share=True),
            "survive_control": _estimate(kept_share[:, 1], group, right_both, share=True),
            "survive_difference": _estimate(kept_share[:, 1] - kept_share[:, 0], group, right_both),
        }

    return {
        "all": part(np.ones(len(table), dtype=bool)),
        "classes": {
            name: part(table.label == number) for number, name in enumerate(classes) if (table.label == number).any()
        },
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _estimate(values: np.ndarray, group: np.ndarray, rows: np.ndarray, *, share: bool = False) -> dict[str, Any]:
    """The mean of values [N] over some images, bool [N], and its 95 % interval over their groups."""
    if not rows.any():
        return {"value": None, "interval": None, "refused": "no images"}
    values, cluster = values[rows], number_clusters(group[rows])
    sums, counts = np.bincount(cluster, weights=values), np.bincount(cluster).astype(np.float64)
    means = resample(lambda weights: (weights @ sums) / (weights @ counts), cluster, RESAMPLES)
    try:
        interval = share_interval(means) if share else {"interval": means.bca(), "interval_of": "BCa"}
        return {"value": float(means.estimate), **interval}
    except Refusal as refusal:
        return {"value": float(means.estimate), "interval": None, "refused": str(refusal)}
