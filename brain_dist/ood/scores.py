"""How unlike the training images an image is, from the features before the classifier and the logits; larger is more.

=================== ==============================================================================================
``mahalanobis``     distance to the nearest class mean under one shared covariance, shrunk as Ledoit and Wolf (2004)
                    (Lee et al. 2018)
``knn``             distance to the tenth nearest training image (Sun et al. 2022), of the features as they are
``knn_normalised``  the same of features of length 1; blind to a shift along the mean feature
``energy``          -log Σ exp(logit) (Liu et al. 2020)
``msp``             1 - the largest probability (Hendrycks and Gimpel 2017)
=================== ==============================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brain_dist.errors import UserError

METHODS = ("mahalanobis", "knn", "knn_normalised", "energy", "msp")
NEIGHBOURS = 10
_BLOCK = 512  # images whose distances to all training images are in memory at a time


@dataclass(frozen=True)
class Reference:
    """What a method keeps of the training images.

    Attributes:
        method: one of :data:`METHODS`.
        centres: float32 [M, D]: class means, or training images; [0, D] for methods that use the logits only.
        whitening: float32 [D, D], applied to features before distances; [0, 0] if there is none.
    """

    method: str
    centres: np.ndarray
    whitening: np.ndarray

    def scores(self, features: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Scores float64 [N] of images with features [N, D] and logits [N, K]."""
        if self.method == "energy":
            return -_logsumexp(logits)
        if self.method == "msp":
            values = np.asarray(logits, dtype=np.float64)
            return 1 - np.exp(values.max(axis=1) - _logsumexp(values))
        if self.method == "mahalanobis":
            return _distances(features @ self.whitening, self.centres, 1)
        neighbours = min(NEIGHBOURS, len(self.centres))
        return _distances(
            _normalised(features) if self.method == "knn_normalised" else features, self.centres, neighbours
        )


def fit(method: str, features: np.ndarray, label: np.ndarray) -> Reference:
    """Fit a method on training images.

    Args:
        method: one of :data:`METHODS`.
        features: [N, D].
        label: int64 [N].

    Raises:
        UserError: the images of each class have equal features, which leaves no covariance to estimate.
    """
    features = np.asarray(features, dtype=np.float32)
    none = np.zeros((0, 0), dtype=np.float32)
    if method == "mahalanobis":
        from sklearn.covariance import LedoitWolf

        names, number = np.unique(label, return_inverse=True)
        means = np.stack([features[number == c].mean(axis=0) for c in range(len(names))])
        try:
            if len(features) < 2:  # scikit-learn warns
                raise np.linalg.LinAlgError
            precision = LedoitWolf(assume_centered=True).fit(features - means[number]).precision_
            whitening = np.linalg.cholesky(precision).astype(np.float32)
        except np.linalg.LinAlgError:
            raise UserError(
                f"mahalanobis needs training images of a class that differ, and these {len(features):,} images of"
                f" {len(names)} classes do not; raise --limit, or choose another --method"
            ) from None
        return Reference(method, means @ whitening, whitening)
    if method == "knn":
        return Reference(method, features, none)
    if method == "knn_normalised":
        return Reference(method, _normalised(features), none)
    return Reference(method, features[:0], none)


def _distances(points: np.ndarray, centres: np.ndarray, nth: int) -> np.ndarray:
    """Distance float64 [N] of each point [N, D] to its ``nth`` nearest centre [M, D]."""
    points, centres = np.asarray(points, dtype=np.float64), np.asarray(centres, dtype=np.float64)
    squares = (centres**2).sum(axis=1)
    nearest = []
    for start in range(0, len(points), _BLOCK):
        block = points[start : start + _BLOCK]
        squared = (block**2).sum(axis=1)[:, None] + squares - 2 * block @ centres.T
        nearest.append(np.partition(squared, nth - 1, axis=1)[:, nth - 1])
    return np.sqrt(np.maximum(np.concatenate(nearest), 0)) if nearest else np.zeros(0)


def _normalised(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _logsumexp(logits: np.ndarray) -> np.ndarray:
    values = np.asarray(logits, dtype=np.float64)
    top = values.max(axis=1)
    return top + np.log(np.exp(values - top[:, None]).sum(axis=1))
