"""Tests and effect sizes that count images, right or wrong. They assume that images are independent of each other."""

from __future__ import annotations

from typing import Any

import numpy as np

from brain_dist.judging.refusal import Refusal


def mcnemar(a_only: int, b_only: int, n: int) -> dict[str, Any]:
    """McNemar's test of two models on the same images, and effect sizes.

    Args:
        a_only: images that only model A gets right.
        b_only: images that only model B gets right.
        n: all images.

    Returns:
        ``a_only``, ``b_only``; ``p`` (exact binomial); ``p_mid`` (mid-p, Fagerland et al. 2013); ``chi2`` and
        ``chi2_corrected`` (without and with Edwards' continuity correction); the effects ``risk_difference``
        (of A - B), ``odds_ratio`` (None if B alone gets no image right) and ``cohens_g`` (share of A among the images
        on which they differ, minus 1/2).

    Raises:
        Refusal: both models are right on the same images.
    """
    from scipy.stats import binom
    from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

    differing = a_only + b_only
    if differing == 0:
        raise Refusal("both are right on the same images")
    table = [[0, a_only], [b_only, 0]]
    exact = float(statsmodels_mcnemar(table, exact=True).pvalue)
    return {
        "a_only": a_only,
        "b_only": b_only,
        "p": exact,
        "p_mid": min(1.0, float(2 * binom.cdf(min(a_only, b_only), differing, 0.5)) - _point(a_only, differing)),
        "chi2": float(statsmodels_mcnemar(table, exact=False, correction=False).statistic),
        "chi2_corrected": float(statsmodels_mcnemar(table, exact=False, correction=True).statistic),
        "risk_difference": (a_only - b_only) / n,
        "odds_ratio": a_only / b_only if b_only else None,
        "cohens_g": a_only / differing - 0.5,
    }


def _point(hits: int, n: int) -> float:
    """Probability of exactly ``hits`` in ``n`` fair draws."""
    from scipy.stats import binom

    return float(binom.pmf(hits, n, 0.5))


def cochran(correct: np.ndarray) -> dict[str, Any]:
    """Cochran's Q test that several models are right equally often.

    Args:
        correct: bool [N, M], whether each model is right on each image.

    Returns:
        ``q``, ``df``, ``p``.

    Raises:
        Refusal: fewer than three models, or all models are right on the same images.
    """
    from statsmodels.stats.contingency_tables import cochrans_q

    if correct.shape[1] < 3:
        raise Refusal("two models: Cochran's test is McNemar's")
    if (correct == correct[:, :1]).all():
        raise Refusal("all models are right on the same images")
    result = cochrans_q(correct.astype(int))
    return {"q": float(result.statistic), "df": correct.shape[1] - 1, "p": float(result.pvalue)}


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjustment (1979) of the p-values of one family."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []
