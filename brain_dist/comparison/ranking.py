"""Tests whose independent blocks are collections: one value of each model on each collection (Demšar 2006).

Rank 1 is the best model. Tables are [B, M]: B collections, M models, and larger values are better.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from brain_dist.comparison.sign_flip import sign_flip_p
from brain_dist.judging.refusal import Refusal

FEWEST_BLOCKS = 6
PERMUTATIONS = 10_000
SEED = 0
ALPHA = 0.05


def mean_ranks(table: np.ndarray) -> np.ndarray:
    """Mean rank of each model [M] in a table [B, M]; ties share their ranks."""
    from scipy.stats import rankdata

    return rankdata(-table, axis=1).mean(axis=0)


def require_blocks(table: np.ndarray) -> None:
    """Check that a table [B, M] has enough blocks and models for ranks, and any differences.

    Raises:
        Refusal: fewer than six blocks or three models, or all models tie in every block.
    """
    if len(table) < FEWEST_BLOCKS:
        raise Refusal(
            f"{_blocks(len(table))}: the χ² approximation and the critical difference need {FEWEST_BLOCKS} or more"
        )
    if table.shape[1] < 3:
        raise Refusal("two models: ranks of two are a sign test; see Wilcoxon's test")
    if (table == table[:, :1]).all():
        raise Refusal("all models have the same value on every block")


def friedman(table: np.ndarray) -> dict[str, Any]:
    """Friedman's test that all models rank alike, in a table [B, M].

    Returns:
        ``chi2`` and ``p`` (corrected for ties); ``chi2_uncorrected`` (as in Demšar 2006); ``f``, ``df`` and ``f_p``
        (Iman & Davenport 1980, from ``chi2``; None if every block ranks alike); ``kendalls_w`` (agreement of the
        blocks, 0 to 1); ``mean_ranks``.

    Raises:
        Refusal: fewer than six blocks or three models, or all models tie in every block.
    """
    from scipy.stats import friedmanchisquare

    require_blocks(table)
    blocks, models = table.shape
    ranks = mean_ranks(table)
    chi2, p = friedmanchisquare(*table.T)
    uncorrected = 12 * blocks / (models * (models + 1)) * float(np.sum((ranks - (models + 1) / 2) ** 2))
    f, df, f_p = iman_davenport(float(chi2), blocks, models)
    return {
        "chi2": float(chi2),
        "p": float(p),
        "chi2_uncorrected": uncorrected,
        "f": f,
        "df": df,
        "f_p": f_p,
        "kendalls_w": float(chi2) / (blocks * (models - 1)),
        "mean_ranks": ranks.tolist(),
    }


def iman_davenport(chi2: float, blocks: int, models: int) -> tuple[float | None, list[int], float | None]:
    """Iman and Davenport's F of a Friedman χ², its degrees of freedom, and its p-value."""
    from scipy.stats import f as f_distribution

    df = [models - 1, (models - 1) * (blocks - 1)]
    rest = blocks * (models - 1) - chi2
    if rest <= 1e-9:
        return None, df, None
    f = (blocks - 1) * chi2 / rest
    return f, df, float(f_distribution.sf(f, *df))


def critical_difference(blocks: int, models: int, alpha: float = ALPHA) -> float:
    """Difference of mean ranks above which two models differ (Nemenyi 1963): q / √2 · √(M (M + 1) / 6B)."""
    from scipy.stats import studentized_range

    q = studentized_range.ppf(1 - alpha, models, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(models * (models + 1) / (6 * blocks)))


def nemenyi(table: np.ndarray) -> dict[str, Any]:
    """Nemenyi's test of all pairs of models in a table [B, M].

    Returns:
        ``p``, p-values [M][M]; ``critical_difference`` of the mean ranks at 5 %.

    Raises:
        Refusal: fewer than six blocks or three models, or all models tie in every block.
    """
    from scikit_posthocs import posthoc_nemenyi_friedman

    require_blocks(table)
    return {
        "p": posthoc_nemenyi_friedman(table).to_numpy().tolist(),
        "critical_difference": critical_difference(*table.shape),
    }


def aligned_friedman(table: np.ndarray) -> dict[str, Any]:
    """Friedman's test of aligned ranks in a table [B, M]: values minus their block's mean, ranked together.

    It also uses how large differences are (Hodges & Lehmann 1962; formula of García et al. 2010).

    Returns:
        ``t``; ``p`` from 10,000 permutations inside blocks (the seed is fixed); ``p_chi2``, a rough approximation.

    Raises:
        Refusal: fewer than six blocks or three models, or all models tie in every block.
    """
    from scipy.stats import chi2, rankdata

    require_blocks(table)
    blocks, models = table.shape
    # rounded, so that values that are equal but for rounding tie
    ranks = rankdata(-np.round(table - table.mean(axis=1, keepdims=True), 12)).reshape(table.shape)
    total = blocks * models
    spread = total * (total + 1) * (2 * total + 1) / 6 - float(np.sum(ranks.sum(axis=1) ** 2)) / models
    centre = models * blocks**2 / 4 * (total + 1) ** 2

    def statistic(sums: np.ndarray) -> np.ndarray:
        return (models - 1) * (np.sum(sums**2, axis=-1) - centre) / spread

    t = float(statistic(ranks.sum(axis=0)))
    rng = np.random.default_rng(SEED)
    permuted = rng.permuted(np.broadcast_to(ranks, (PERMUTATIONS, *ranks.shape)), axis=2).sum(axis=1)
    count = int(np.count_nonzero(statistic(permuted) >= t - 1e-9))
    return {"t": t, "p": (1 + count) / (1 + PERMUTATIONS), "p_chi2": float(chi2.sf(t, models - 1))}


def wilcoxon(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Wilcoxon's signed-rank test of two models on the same collections, and Cliff's δ.

    Ranks of zero differences are divided between both sides, as Demšar 2006 does.

    Args:
        a: values of one model [B].
        b: values of the other [B].

    Returns:
        ``rank_sums`` (for A, for B), ``p`` (exact for the ranks at hand, also with ties), ``p_normal`` (normal
        approximation), ``cliffs_delta`` (-1 to 1).

    Raises:
        Refusal: fewer than six differences are not 0.
    """
    from scipy import stats

    difference = np.round(a - b, 12)
    pairs = int(np.count_nonzero(difference))
    if pairs < FEWEST_BLOCKS:
        least = f"the smallest possible p is {2.0 ** (1 - pairs):.4g}" if pairs else "there is nothing to rank"
        raise Refusal(f"the values differ in {_blocks(pairs)}: {least}; {FEWEST_BLOCKS} or more are needed")
    ranks = stats.rankdata(np.abs(difference))
    zero = float(ranks[difference == 0].sum()) / 2
    return {
        "rank_sums": [float(ranks[side].sum()) + zero for side in (difference > 0, difference < 0)],
        "p": sign_flip_p(2 * ranks * np.sign(difference)),  # twice a rank is a whole number
        "p_normal": float(stats.wilcoxon(difference, zero_method="zsplit", method="asymptotic").pvalue),
        "cliffs_delta": float(np.sign(a[:, None] - b[None, :]).mean()),
    }


def _blocks(count: int) -> str:
    return f"{count} collection{'' if count == 1 else 's'}"
