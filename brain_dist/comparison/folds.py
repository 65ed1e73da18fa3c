"""Tests of cross-validated values. Folds of one set share training images, which the usual paired t-test ignores."""

from __future__ import annotations

from typing import Any

import numpy as np

from brain_dist.judging.refusal import Refusal

ROPE = 0.01  # differences up to this size count as practically equal
MOST_UNEQUAL = 1.2  # largest fold / smallest fold


def five_by_two(difference: np.ndarray) -> dict[str, Any]:
    """5x2cv tests: Dietterich's paired t (1998) and Alpaydin's combined F (1999).

    Args:
        difference: differences of two models [replications, folds].

    Returns:
        ``t`` (5 degrees of freedom) and ``t_p``; ``f`` (10 and 5) and ``p``.

    Raises:
        Refusal: not five replications of two folds, or the differences have no variance.
    """
    from scipy.stats import f as f_distribution
    from scipy.stats import t as t_distribution

    if difference.shape != (5, 2):
        replications, folds = difference.shape
        raise Refusal(f"{replications} × {folds} folds: the test is made for five replications of two folds")
    variance = np.sum((difference - difference.mean(axis=1, keepdims=True)) ** 2, axis=1)
    if variance.sum() < 1e-18:
        raise Refusal("the differences have no variance")
    t = float(difference[0, 0] / np.sqrt(variance.mean()))
    f = float(np.sum(difference**2) / (2 * variance.sum()))
    return {"t": t, "t_p": float(2 * t_distribution.sf(abs(t), 5)), "f": f, "p": float(f_distribution.sf(f, 10, 5))}


def require_equal_folds(sizes: np.ndarray) -> None:
    """Check that the numbers of test images [F] of the folds are about equal.

    Raises:
        Refusal: the largest fold is more than 20 % larger than the smallest.
    """
    if sizes.max() > MOST_UNEQUAL * sizes.min():
        raise Refusal(
            f"folds of {sizes.min():,} to {sizes.max():,} images: with sizes more than 20 % apart, the ratio of test to"
            " training images is not a constant"
        )


def corrected_t(difference: np.ndarray, ratio: float) -> dict[str, Any]:
    """Nadeau and Bengio's corrected resampled t-test (2003).

    Args:
        difference: differences of two models on F folds [F].
        ratio: test images / training images of a fold.

    Returns:
        ``difference`` (mean), ``t``, ``df``, ``p``, and ``p_naive`` of the uncorrected test.

    Raises:
        Refusal: fewer than three folds, or the differences have no variance.
    """
    from scipy.stats import t as t_distribution

    mean, scale, df = _moments(difference, ratio)
    naive = float(difference.std(ddof=1)) / np.sqrt(len(difference))
    return {
        "difference": mean,
        "t": mean / scale,
        "df": df,
        "p": float(2 * t_distribution.sf(abs(mean / scale), df)),
        "p_naive": float(2 * t_distribution.sf(abs(mean / naive), df)),
    }


def correlated_bayes(difference: np.ndarray, ratio: float, rope: float = ROPE) -> dict[str, Any]:
    """Bayesian correlated t-test (Corani & Benavoli 2015): probabilities of the true difference.

    Args:
        difference: differences of two models on F folds [F].
        ratio: test images / training images of a fold.
        rope: size of differences that count as practically equal.

    Returns:
        ``worse``, ``equal`` and ``better``: probabilities that the difference is below -``rope``, between, above.

    Raises:
        Refusal: as :func:`corrected_t`.
    """
    from scipy.stats import t as t_distribution

    mean, scale, df = _moments(difference, ratio)
    worse, not_better = t_distribution.cdf([-rope, rope], df, mean, scale)
    return {"worse": float(worse), "equal": float(not_better - worse), "better": float(1 - not_better), "rope": rope}


def _moments(difference: np.ndarray, ratio: float) -> tuple[float, float, int]:
    """Mean, corrected standard error and degrees of freedom of differences [F]."""
    if len(difference) < 3:
        raise Refusal(f"{len(difference)} folds: a variance over folds needs three or more")
    variance = float(difference.var(ddof=1))
    if variance < 1e-18:
        raise Refusal("the differences have no variance")
    return float(difference.mean()), float(np.sqrt((1 / len(difference) + ratio) * variance)), len(difference) - 1
