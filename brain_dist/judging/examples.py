"""Choose the predictions of an evaluation that a person should look at: confident errors and typical correct ones.

All functions return positions in the predictions table. Confidence is the probability of the predicted class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from brain_dist.judging.predictions import Predictions


@dataclass(frozen=True)
class Example:
    """A prediction with its image.

    Attributes:
        image: uint8 [H, W], as the network saw it.
        key: the image's key in the index.
        true: name of the true class.
        predicted: name of the predicted class.
        probability: probability of the predicted class.
    """

    image: np.ndarray
    key: str
    true: str
    predicted: str
    probability: float


def choose_examples(predictions: Predictions, most: int) -> np.ndarray:
    """Table positions [≤ most]: errors by falling confidence, then correct predictions by rising confidence."""
    correct = np.flatnonzero(predictions.predicted == predictions.label)
    confidence = predictions.prob[correct].max(axis=1)
    uncertain = correct[np.argsort(confidence, kind="stable")]
    return np.concatenate([confident_errors(predictions), uncertain])[:most]


def confident_errors(predictions: Predictions, per_group: int | None = None) -> np.ndarray:
    """Positions [M] of errors by falling confidence; at most ``per_group`` of one group if it is given."""
    errors = np.flatnonzero(predictions.predicted != predictions.label)
    errors = errors[np.argsort(-predictions.prob[errors].max(axis=1), kind="stable")]
    if per_group is None:
        return errors
    counters: defaultdict[str, Iterator[int]] = defaultdict(count)
    return errors[[next(counters[group]) < per_group for group in predictions.group[errors]]]


def typical_hits(predictions: Predictions) -> np.ndarray:
    """Positions [≤ classes]: for each class with correct predictions the one of median confidence."""
    confidence = predictions.prob.max(axis=1)
    medians = []
    for label in range(len(predictions.classes)):
        correct = np.flatnonzero((predictions.label == label) & (predictions.predicted == label))
        if len(correct):
            medians.append(correct[np.argsort(confidence[correct], kind="stable")[len(correct) // 2]])
    return np.array(medians, dtype=np.int64)
