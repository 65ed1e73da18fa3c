"""Sets of classes that contain the true class with a known probability: split conformal prediction over patients.

Slices of a patient are not exchangeable with those of another, but patients are. So each patient counts once: a slice
score has the weight 1 / slices of its patient, and the threshold is the smallest score up to which the weights sum to
k = ⌈(G + 1)(1 - α)⌉ of G patients (Lee, Barber & Willett 2023; Dunn, Wasserman & Ramdas 2022). For a random slice of a
new patient the set then contains the true class with probability ≥ 1 - α, averaged over calibration data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from hashlib import blake2b
from typing import Any

import numpy as np

from brain_dist.calibration.scaling import scaled
from brain_dist.judging.refusal import Refusal

METHODS = {
    "lac": "classes above one threshold (Sadinle et al. 2019): the smallest sets on average",
    "aps": "adaptive sets, randomised (Romano et al. 2020): larger where the network is unsure",
    "class_conditional": "a threshold for each class: the coverage holds for every class",
}
FEWEST_GROUPS = 10  # of each class, for a threshold of its own


@dataclass(frozen=True)
class Threshold:
    """Scores up to ``value`` are in the set; fitted on ``groups`` patients, whose ``k``-th smallest score it is."""

    value: float
    groups: int
    k: int


def wanted_coverage(alpha: float) -> str:
    """1 - α in percent with all its digits: 0.025 → "97.5 %"."""
    return f"{(100 * (1 - Decimal(str(alpha)))).normalize():f}\u00a0%"


def needed_rank(groups: int, alpha: float) -> int:
    """k = ⌈(G + 1)(1 - α)⌉, exact for the decimal α.

    Raises:
        Refusal: k is above G: no finite score is large enough.
    """
    k = math.ceil((groups + 1) * (1 - Fraction(str(alpha))))
    if k > groups:
        fewest = math.ceil(1 / Fraction(str(alpha))) - 1
        raise Refusal(f"only {groups} groups; sets of {wanted_coverage(alpha)} coverage need {fewest}")
    return k


def fit_threshold(score: np.ndarray, cluster: np.ndarray, alpha: float) -> Threshold:
    """The threshold of the true classes' scores [N], in groups [N].

    Raises:
        Refusal: there are too few groups, see :func:`needed_rank`.
    """
    names, number, size = np.unique(cluster, return_inverse=True, return_counts=True)
    k = needed_rank(len(names), alpha)
    order = np.argsort(score, kind="stable")
    reached = np.cumsum(1 / size[number][order])
    position = min(int(np.searchsorted(reached, k - 1e-9)), len(score) - 1)  # sums of 1/3 are not exact
    return Threshold(float(score[order][position]), len(names), k)


def lac_scores(logit: np.ndarray) -> np.ndarray:
    """1 - probability, for logits [N, K]."""
    return 1 - scaled(logit)


def aps_scores(logit: np.ndarray) -> np.ndarray:
    """Total probability of the likelier classes plus a random share of the class's own, for logits [N, K].

    The share is drawn by a hash of the image's logits, so that the set of an image is the same beside any other images.
    """
    prob = scaled(logit)
    order = np.argsort(-prob, axis=1, kind="stable")
    ranked = np.take_along_axis(prob, order, axis=1)
    before = np.cumsum(ranked, axis=1) - ranked
    share = np.array([[_uniform(row)] for row in np.ascontiguousarray(logit, dtype="<f4")])
    scores = np.empty_like(prob)
    np.put_along_axis(scores, order, before + share * ranked, axis=1)
    return scores


def _uniform(row: np.ndarray) -> float:
    """A number in 0..1 that depends on nothing but the bytes of an image's logits."""
    return int.from_bytes(blake2b(row.tobytes(), digest_size=8).digest(), "little") / 2**64


SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "lac": lac_scores, "aps": aps_scores, "class_conditional": lac_scores,
}  # fmt: skip


def fit_method(method: str, label: np.ndarray, logit: np.ndarray, cluster: np.ndarray, alpha: float) -> list[Threshold]:
    """The threshold of each of K classes; the same for all of them unless the method is class-conditional.

    Args:
        method: one of :data:`METHODS`.
        label: true classes, int64 [N].
        logit: [N, K].
        cluster: number of each sample's group, int64 [N].
        alpha: wanted share of sets without the true class.

    Raises:
        Refusal: there are too few groups, of any class if the method is class-conditional.
    """
    score = SCORES[method](logit)[np.arange(len(label)), label]
    if method != "class_conditional":
        return [fit_threshold(score, cluster, alpha)] * logit.shape[1]
    thresholds = []
    for c in range(logit.shape[1]):
        groups = len(np.unique(cluster[label == c]))
        if groups < FEWEST_GROUPS:
            raise Refusal(f"a class has only {groups} groups; a threshold of its own needs {FEWEST_GROUPS}")
        thresholds.append(fit_threshold(score[label == c], cluster[label == c], alpha))
    return thresholds


def coverage_law(threshold: Threshold, groups: int) -> dict[str, Any]:
    """What coverage to expect for patients like those of the fit.

    If the slices of a patient differ, the coverage varies less than this law says.

    Args:
        threshold: the fitted threshold.
        groups: patients on whom the coverage is measured.

    Returns:
        ``beta``: parameters k and G + 1 - k of the law of the long-run coverage (Vovk 2012); its ``mean`` and ``range``
        (middle 95 %); ``measured_range``: middle 95 % of the share of ``groups`` patients (beta-binomial).
    """
    from scipy.stats import beta, betabinom

    law = (threshold.k, threshold.groups + 1 - threshold.k)
    return {
        "beta": list(law),
        "mean": law[0] / sum(law),
        "range": [float(value) for value in beta.ppf([0.025, 0.975], *law)],
        "measured_range": [float(value) / groups for value in betabinom.ppf([0.025, 0.975], groups, *law)],
    }
