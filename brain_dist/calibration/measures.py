"""How far probabilities are from frequencies: calibration errors, the Brier score and its parts, and what chance gives.

A calibration error of finite data is above 0 even if the probabilities are right, because the share of correct images
in a bin varies. :func:`null_errors` says by how much.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from brain_dist.judging.clusters import Statistic
from brain_dist.judging.metrics import ECE_BINS, width_bins
from brain_dist.judging.weighted import contributions

ERRORS = {
    "ece": "expected calibration error, bins of equal width",
    "ece_mass": "expected calibration error, bins of equal numbers of images",
    "ece_class": "class-wise calibration error, mean over the classes",
}
MEASURES = (*ERRORS, "brier", "nll")
# A resample repeats some images and lacks others, so its bins vary more than those of new data, and the error is raised
NO_INTERVAL = "resampling raises a calibration error; compare it with what right probabilities would show"
NULL_DRAWS = 1000
SMOOTH_CELLS = 2048


def mass_bins(value: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each value [N], so that bins hold about equal numbers; equal values share a bin."""
    last = np.ceil(np.arange(1, bins) * len(value) / bins).astype(int) - 1
    return np.searchsorted(np.sort(value)[np.maximum(last, 0)], value, side="left")


def binned_gap(value: np.ndarray, outcome: np.ndarray, bin_index: np.ndarray) -> float:
    """Σ over bins of |Σ (value - outcome)| / N: the calibration error of values [N] and outcomes [N] in bins [N]."""
    return float(np.abs(np.bincount(bin_index, weights=value - outcome)).sum() / len(value))


def calibration_errors(label: np.ndarray, prob: np.ndarray, bins: int = ECE_BINS) -> dict[str, float]:
    """The :data:`ERRORS` of labels [N] and probabilities [N, K].

    Sources: Guo et al. 2017 (top label), Nguyen & O'Connor 2015 (equal numbers), Nixon et al. 2019 (class-wise).
    """
    confidence, correct = prob.max(axis=1), prob.argmax(axis=1) == label
    by_class = [binned_gap(prob[:, c], label == c, width_bins(prob[:, c], bins)) for c in range(prob.shape[1])]
    return {
        "ece": binned_gap(confidence, correct, width_bins(confidence, bins)),
        "ece_mass": binned_gap(confidence, correct, mass_bins(confidence, bins)),
        "ece_class": float(np.mean(by_class)),
    }


def measures_statistic(label: np.ndarray, prob: np.ndarray, cluster: np.ndarray, bins: int = ECE_BINS) -> Statistic:
    """The :data:`MEASURES` as a function of the clusters' weights [B, I] → [B, 5]; bins stay those of all the data.

    Args:
        label: true classes, int64 [N].
        prob: probabilities [N, K].
        cluster: number of each sample's cluster, int64 [N] in 0..I-1.
        bins: number of bins.
    """
    prob = np.asarray(prob, dtype=np.float64)
    clusters, k = int(cluster.max()) + 1, prob.shape[1]
    size = np.bincount(cluster).astype(np.float64)
    confidence, correct = prob.max(axis=1), prob.argmax(axis=1) == label

    def gaps(value: np.ndarray, outcome: np.ndarray, bin_index: np.ndarray) -> np.ndarray:
        """Sum of value - outcome by cluster and bin, [I, bins]."""
        cells = np.bincount(cluster * bins + bin_index, weights=value - outcome, minlength=clusters * bins)
        return cells.reshape(clusters, bins)

    top = [gaps(confidence, correct, chosen(confidence, bins)) for chosen in (width_bins, mass_bins)]
    classes = [gaps(prob[:, c], label == c, width_bins(prob[:, c], bins)) for c in range(k)]
    losses = [np.bincount(cluster, weights=contributions(name, label, prob)) for name in ("brier", "nll")]

    def statistic(weights: np.ndarray) -> np.ndarray:
        total = weights @ size
        errors = [np.abs(weights @ each).sum(axis=1) for each in top]
        errors.append(np.mean([np.abs(weights @ each).sum(axis=1) for each in classes], axis=0))
        return np.stack([*errors, *(weights @ each for each in losses)], axis=1) / total[:, None]

    return statistic


def null_errors(prob: np.ndarray, cluster: np.ndarray, draws: int = NULL_DRAWS, seed: int = 0) -> dict[str, Any]:
    """The :data:`ERRORS` that these probabilities would show if they were right, by drawing labels from them.

    Args:
        prob: probabilities [N, K].
        cluster: number of each sample's group, int64 [N].
        draws: number of draws.
        seed: seed of the draws.

    Returns:
        For each error ``mean`` and ``p95`` (95th percentile) if images are independent given their probabilities, and
        ``p95_grouped`` if the images of a group err together (one random number for each group). The truth is between.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(-prob, axis=1, kind="stable")  # the likeliest class first: a small number is a correct image
    cumulative = np.cumsum(np.take_along_axis(np.asarray(prob, dtype=np.float64), order, axis=1), axis=1)[:, :-1]

    def drawn(uniform: np.ndarray) -> dict[str, float]:
        rank = (uniform[:, None] > cumulative).sum(axis=1)
        return calibration_errors(order[np.arange(len(order)), rank], prob)

    alone = [drawn(rng.random(len(prob))) for _ in range(draws)]
    grouped = [drawn(rng.random(int(cluster.max()) + 1)[cluster]) for _ in range(draws)]
    return {
        name: {
            "mean": float(np.mean([errors[name] for errors in alone])),
            "p95": float(np.quantile([errors[name] for errors in alone], 0.95)),
            "p95_grouped": float(np.quantile([errors[name] for errors in grouped], 0.95)),
        }
        for name in ERRORS
    }


def verdict(error: float, null: dict[str, float]) -> str:
    """What a calibration error says beside its :func:`null_errors`: "calibrated", "undecided" or "miscalibrated"."""
    if error <= null["p95"]:
        return "calibrated"
    return "undecided" if error <= null["p95_grouped"] else "miscalibrated"


def smooth_error(value: np.ndarray, outcome: np.ndarray) -> float:
    """Calibration error without bins: smECE (Błasiok & Nakkiran 2023) of values [N] in 0..1 and outcomes [N].

    The differences value - outcome are smoothed over the values by a Gaussian of width s, reflected at 0 and 1; the
    integral of their absolute value falls with s, and the error is the s that it equals.
    """
    from scipy.ndimage import gaussian_filter1d
    from scipy.optimize import brentq

    cell = np.minimum((np.asarray(value) * SMOOTH_CELLS).astype(int), SMOOTH_CELLS - 1)
    gap = np.bincount(cell, weights=value - outcome, minlength=SMOOTH_CELLS) / len(value)

    def smoothed(width: float) -> float:
        return float(np.abs(gaussian_filter1d(gap, width * SMOOTH_CELLS, mode="reflect", truncate=6)).sum())

    narrow = 1 / SMOOTH_CELLS
    return narrow if smoothed(narrow) <= narrow else float(brentq(lambda s: smoothed(s) - s, narrow, 1, xtol=1e-9))


def brier_parts(label: np.ndarray, prob: np.ndarray, bins: int = ECE_BINS) -> dict[str, float]:
    """The Brier score of labels [N] and probabilities [N, K] in parts (Murphy 1973), summed over the classes.

    Returns:
        ``reliability`` - ``resolution`` + ``uncertainty`` + ``within_bins`` is the Brier score; ``within_bins`` is what
        the bins hide (Stephenson et al. 2008).
    """
    prob = np.asarray(prob, dtype=np.float64)
    n, k = prob.shape
    reliability = resolution = uncertainty = 0.0
    for c in range(k):
        outcome = (label == c).astype(np.float64)
        index = width_bins(prob[:, c], bins)
        count = np.bincount(index, minlength=bins)
        used = count > 0
        forecast, frequency = (np.bincount(index, x, bins)[used] / count[used] for x in (prob[:, c], outcome))
        reliability += float((count[used] * (forecast - frequency) ** 2).sum() / n)
        resolution += float((count[used] * (frequency - outcome.mean()) ** 2).sum() / n)
        uncertainty += float(outcome.mean() * (1 - outcome.mean()))
    brier = float(contributions("brier", label, prob).mean())
    parts = {"reliability": reliability, "resolution": resolution, "uncertainty": uncertainty}
    return {**parts, "within_bins": brier - (reliability - resolution + uncertainty)}
