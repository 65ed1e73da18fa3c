"""Choose the images of an evaluation that a person should look at: the surest errors, then the least sure hits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brain_dist.judging.predictions import Predictions


@dataclass(frozen=True)
class Example:
    """``image`` uint8 [H, W] as the network saw it; ``probability`` of the ``predicted`` class."""

    image: np.ndarray
    key: str
    true: str
    predicted: str
    probability: float


def choose_examples(predictions: Predictions, count: int) -> np.ndarray:
    """Positions of the ``count`` most telling predictions: errors by falling probability, then hits by rising one."""
    wrong = predictions.predicted != predictions.label
    sure = predictions.prob.max(axis=1)
    return np.lexsort((np.where(wrong, -sure, sure), ~wrong))[:count]
