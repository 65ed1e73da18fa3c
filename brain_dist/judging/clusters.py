"""Bootstrap over clusters: images of one patient are not independent, so patients are resampled with all their images.

A statistic is a function of the clusters' weights. A resample of the clusters is a row of weights that counts how often
each cluster was drawn; the estimate has the weights 1, and a row of the jackknife has one 0. Statistics that are
computed from the same weights are paired: the difference of two columns is a resampled difference.

With few clusters, or few clusters of a class, a 95 % interval from resampling contains the true value far less often
than that, so such intervals are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brain_dist.judging.refusal import Refusal

RESAMPLES = 10_000
SEED = 0
CONFIDENCE = 0.95
FEWEST_CLUSTERS = 10  # with fewer, resampled intervals are much too narrow
MOST_UNDEFINED = 0.01  # share of the resamples in which a statistic may be undefined
BLOCK_VALUES = 1 << 20  # weights of samples in memory at a time: 8 MiB

Statistic = Callable[[np.ndarray], np.ndarray]
"""Weights of the clusters, float64 [B, I], → values [B, M], NaN where undefined."""


def number_clusters(group: np.ndarray) -> np.ndarray:
    """Number of each sample's cluster, int64 [N] in 0..I-1, for names of clusters [N]."""
    return np.unique(np.asarray(group).astype(str), return_inverse=True)[1].astype(np.int64)


def weight_blocks(clusters: int, resamples: int, seed: int, rows: int) -> Iterator[np.ndarray]:
    """Multinomial weights float64 [≤ ``rows``, ``clusters``] of resamples; the same weights for any ``rows``."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = rng.integers(0, clusters, size=(count, clusters)) + clusters * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * clusters)
        yield weights.reshape(count, clusters).astype(np.float64)


@dataclass(frozen=True)
class Resampled:
    """Statistics of the data, of resamples, and without one cluster each.

    Attributes:
        estimate: [M], or a scalar for a single statistic.
        values: [B, M] or [B].
        jackknife: [I, M] or [I].
    """

    estimate: np.ndarray
    values: np.ndarray
    jackknife: np.ndarray

    def mean(self, columns: list[int]) -> Resampled:
        """The mean of some of the M statistics, as a single one."""
        return Resampled(*(array[..., columns].mean(axis=-1) for array in vars(self).values()))

    def __sub__(self, other: Resampled) -> Resampled:
        return Resampled(*(a - b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def bca(self) -> list[float]:
        """95 % BCa interval [low, high] of a single statistic: bias-corrected and accelerated (Efron 1987).

        Raises:
            Refusal: there are fewer than ten clusters, the statistic is undefined in more than 1 % of the resamples,
                all resamples give the same value, or the interval would not contain the estimate.
        """
        from scipy.stats import norm

        values = self._defined()
        bias, acceleration = self._bias(values), self._acceleration()
        z = bias + norm.ppf([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        levels = norm.cdf(bias + z / (1 - acceleration * z))
        return [float(value) for value in np.quantile(values, levels)]

    def percentile(self) -> list[float]:
        """95 % percentile interval [low, high] of a single statistic.

        Raises:
            Refusal: as :meth:`bca`.
        """
        levels = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
        return [float(value) for value in np.quantile(self._defined(), levels)]

    def p_value(self) -> float:
        """Two-sided p-value of the hypothesis that a single statistic is 0.

        It is the level at which the BCa interval ends at 0, and at least 2 / (B + 1).

        Raises:
            Refusal: as :meth:`bca`.
        """
        from scipy.stats import norm

        values = self._defined()
        smallest = 1 / (len(values) + 1)
        below = np.clip(_share_below(values, 0.0), smallest, 1 - smallest)
        bias, acceleration = self._bias(values), self._acceleration()
        shift = norm.ppf(below) - bias
        tail = norm.cdf(shift / (1 + acceleration * shift) - bias)
        return float(np.clip(2 * min(tail, 1 - tail), 2 * smallest, 1))

    def _defined(self) -> np.ndarray:
        """The values [≤ B] in which the statistic is defined, if they can carry an interval."""
        require_clusters(len(self.jackknife))
        undefined = np.isnan(self.values)
        if undefined.mean() > MOST_UNDEFINED or np.isnan(self.estimate):
            raise Refusal(
                f"undefined in {undefined.sum():,} of {len(undefined):,} resamples: too few groups of one class"
            )
        values = self.values[~undefined]
        if np.ptp(values) <= 1e-12:
            raise Refusal("no spread: every resample gives the same value")
        below = _share_below(values, float(self.estimate))
        if not (1 - CONFIDENCE) / 2 <= below <= (1 + CONFIDENCE) / 2:
            side = "below" if below > 0.5 else "above"
            raise Refusal(
                f"resampling is biased: {max(below, 1 - below):.1%} of the resamples are {side} the estimate, so that"
                " the interval would not contain it"
            )
        return values

    def _bias(self, values: np.ndarray) -> float:
        """Normal quantile of the share of values below the estimate."""
        from scipy.stats import norm

        smallest = 1 / (len(values) + 1)
        return float(norm.ppf(np.clip(_share_below(values, float(self.estimate)), smallest, 1 - smallest)))

    def _acceleration(self) -> float:
        leverage = np.nanmean(self.jackknife) - self.jackknife
        leverage = leverage[~np.isnan(leverage)]
        spread = np.sum(leverage**2)
        return float(np.sum(leverage**3) / (6 * spread**1.5)) if spread > 0 else 0.0


def _share_below(values: np.ndarray, limit: float) -> float:
    """Share of values below a limit; values equal to it, up to rounding, count half."""
    equal = np.isclose(values, limit, rtol=0, atol=1e-12)
    return float(((values < limit) & ~equal).mean() + equal.mean() / 2)


def resample(statistic: Statistic, cluster: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> Resampled:
    """Compute a statistic of the data, of resamples of the clusters, and without each cluster.

    Memory is bounded: weights are made in blocks, and the result does not depend on the blocks' size.

    Args:
        statistic: function of weights [B, I].
        cluster: number of each sample's cluster, int64 [N] in 0..I-1.
        resamples: number of resamples, B.
        seed: seed of the resamples.
    """
    clusters = int(cluster.max()) + 1
    rows = max(1, BLOCK_VALUES // max(len(cluster), clusters))
    jackknife = []
    with np.errstate(invalid="ignore", divide="ignore"):  # nothing is left without the only cluster
        values = [statistic(weights) for weights in weight_blocks(clusters, resamples, seed, rows)]
        for start in range(0, clusters, rows):
            weights = np.ones((min(rows, clusters - start), clusters))
            weights[np.arange(len(weights)), start + np.arange(len(weights))] = 0
            jackknife.append(statistic(weights))
    return Resampled(statistic(np.ones((1, clusters)))[0], np.concatenate(values), np.concatenate(jackknife))


def wilson_interval(hits: int, n: int) -> list[float]:
    """95 % Wilson score interval [low, high] of the proportion ``hits / n`` of independent trials (Wilson 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return [float(interval.low), float(interval.high)]


def share_interval(share: Resampled, groups: int | None = None, method: str = "BCa") -> dict[str, Any]:
    """95 % interval of a share of the samples, such as the accuracy or a sensitivity, with clusters as the units.

    Resampling has no spread where the share is 0 or 1. The interval there is Wilson's with one trial for each cluster,
    as if the samples of a cluster were right or wrong together.

    Args:
        share: the share, a single statistic.
        groups: the number of clusters with samples that the share is about; None for all clusters.
        method: the interval of other shares, "BCa" or "percentile".

    Returns:
        ``interval`` [low, high], and ``interval_of``: ``method`` or "Wilson".

    Raises:
        Refusal: ``groups`` is below ten, or as :meth:`Resampled.bca`.
    """
    groups = len(share.jackknife) if groups is None else groups
    require_clusters(groups)
    if float(share.estimate) in (0.0, 1.0):
        return {"interval": wilson_interval(groups * int(share.estimate), groups), "interval_of": "Wilson"}
    return {"interval": share.bca() if method == "BCa" else share.percentile(), "interval_of": method}


@dataclass(frozen=True)
class ClassGroups:
    """How many clusters each class has, which decides what can have an interval.

    Attributes:
        classes: names of the K classes.
        having: clusters with samples of each class, int64 [K].
        others: clusters with samples of any other class, int64 [K].
    """

    classes: tuple[str, ...]
    having: np.ndarray
    others: np.ndarray

    @classmethod
    def count(cls, label: np.ndarray, cluster: np.ndarray, classes: Sequence[str]) -> ClassGroups:
        """Count the clusters, int64 [N], of classes, int64 [N] in 0..K-1."""
        having, others = (
            np.array([len(np.unique(cluster[(label == c) == of])) for c in range(len(classes))], dtype=np.int64)
            for of in (True, False)
        )
        return cls(tuple(classes), having, others)

    def check(self, metric: str, c: int | None = None) -> None:
        """Refuse the interval of a metric that depends on a class with few clusters.

        Means over classes, Cohen's kappa and the Matthews correlation need ten clusters of every class that occurs. Of
        a single class, the specificity needs ten clusters of the others, the AUC ten of both, and all else ten of the
        class.

        Args:
            metric: a name of :data:`~brain_dist.judging.weighted.METRICS`, ``NAME_macro``, or the NAME of a metric of
                one class.
            c: the number of the class, for a metric of one class.

        Raises:
            Refusal: there are fewer clusters.
        """
        if c is not None:
            if metric != "specificity":
                require_clusters(int(self.having[c]), f" of {self.classes[c]}")
            if metric in ("specificity", "auc"):
                require_clusters(int(self.others[c]), f" not of {self.classes[c]}")
        elif metric in ("balanced_accuracy", "kappa", "mcc") or metric.endswith("_macro"):
            for name, groups in zip(self.classes, self.having, strict=True):
                if groups:
                    require_clusters(int(groups), f" of {name}")


def require_clusters(groups: int, of: str = "") -> None:
    """Raise a Refusal for an interval over fewer than ten clusters; ``of`` says of what they are."""
    if groups < FEWEST_CLUSTERS:
        word = "group" if groups == 1 else "groups"
        raise Refusal(f"only {groups} {word}{of}; an interval over groups needs {FEWEST_CLUSTERS}")
