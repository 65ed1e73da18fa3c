"""Sign-flip test over clusters: if two models are equally good, each patient's difference could as well be reversed."""

from __future__ import annotations

import numpy as np

MOST_ENUMERATED = 20  # clusters with a difference whose 2^n sign patterns are all counted
MONTE_CARLO = 100_000
SEED = 0
BLOCK_ROWS = 2_000


def sign_flip_p(difference: np.ndarray) -> float:
    """Two-sided p-value of the hypothesis that the signs of the clusters' differences are random.

    It is the probability that random signs give a sum at least as far from 0 as the observed one. Whole differences,
    such as hits, have their exact distribution by convolution, so that clusters of one image give the exact McNemar
    test. Other differences are enumerated for up to 20 clusters with a difference, and drawn 100,000 times for more
    (p = (1 + count) / (1 + draws), Phipson & Smyth 2010; the seed is fixed).

    Args:
        difference: sum of the differences of each cluster's samples [I].
    """
    size = np.abs(difference[np.abs(difference) > 1e-12])
    observed = abs(float(difference.sum()))
    if len(size) == 0:
        return 1.0
    whole = np.rint(size).astype(np.int64)
    if whole.min() > 0 and np.abs(size - whole).max() < 1e-9:
        return _exact(whole, round(observed))
    limit = observed - 1e-12 * size.sum()  # sums that differ by rounding only are equal
    if len(size) <= MOST_ENUMERATED:
        sums = np.zeros(1)
        for step in size:
            sums = np.concatenate([sums + step, sums - step])
        return float((np.abs(sums) >= limit).mean())
    rng, count = np.random.default_rng(SEED), 0
    for _ in range(MONTE_CARLO // BLOCK_ROWS):
        signs = 2 * rng.integers(0, 2, size=(BLOCK_ROWS, len(size)), dtype=np.int8) - 1
        count += int(np.count_nonzero(np.abs(signs @ size) >= limit))
    return (1 + count) / (1 + MONTE_CARLO)


def _exact(size: np.ndarray, observed: int) -> float:
    """P(|sum of ± size| ≥ observed), from the distribution of the sum."""
    step = int(np.gcd.reduce(size))
    size, observed = size // step, observed // step
    total = int(size.sum())
    share = np.zeros(2 * total + 1)  # share[s + total] is the probability of the sum s
    share[total] = 1.0
    reach = 0
    for value in size.tolist():
        old = share[total - reach : total + reach + 1].copy() / 2
        share[total - reach : total + reach + 1] = 0
        share[total - reach - value : total + reach - value + 1] += old
        share[total - reach + value : total + reach + value + 1] += old
        reach += value
    far = np.abs(np.arange(-total, total + 1)) >= observed
    return float(min(1.0, share[far].sum()))
