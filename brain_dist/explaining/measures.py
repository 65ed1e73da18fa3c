"""How well a map agrees with a known tumour: pure functions of a map and a mask, each in 0..1, more is better.

Equal values share what they would get in any order: a map without a preference gets the share of the image that the
tumour covers. A map that is empty says as much as one without a preference.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Measure = Callable[[np.ndarray, np.ndarray], float]


def pointing_game(heat: np.ndarray, mask: np.ndarray) -> float:
    """Whether the largest value lies in the mask (Zhang et al. 2016), without tolerance.

    Args:
        heat: [H, W], not negative.
        mask: bool [H, W], with at least one True.
    """
    return float(mask[heat == heat.max()].mean())


def energy_inside(heat: np.ndarray, mask: np.ndarray) -> float:
    """Share of the sum of a map [H, W] that lies in the mask, bool [H, W] (Wang et al. 2020)."""
    total = heat.sum(dtype=np.float64)
    return float(heat[mask].sum(dtype=np.float64) / total) if total > 0 else float(mask.mean())


def rank_accuracy(heat: np.ndarray, mask: np.ndarray) -> float:
    """Of as many largest values of a map [H, W] as the mask has pixels, the share in the mask (Arras et al. 2022)."""
    count = int(mask.sum())
    threshold = np.partition(heat, heat.size - count, axis=None)[heat.size - count]
    above, equal = heat > threshold, heat == threshold
    inside = (above & mask).sum() + (count - above.sum()) * (equal & mask).sum() / equal.sum()
    return float(inside / count)


def iou_at_area(heat: np.ndarray, mask: np.ndarray) -> float:
    """Intersection over union of the mask, bool [H, W], and the largest values of the map [H, W] on the same area."""
    accuracy = rank_accuracy(heat, mask)
    return accuracy / (2 - accuracy)


LOCATION: dict[str, Measure] = {
    "pointing game": pointing_game,
    "energy inside": energy_inside,
    "rank accuracy": rank_accuracy,
    "IoU at its area": iou_at_area,
}
