"""Scale logits so that probabilities mean what they say: temperature and vector scaling (Guo et al. 2017)."""

from __future__ import annotations

import numpy as np

from brain_dist.judging.refusal import Refusal

# Range of 1 / temperature. An optimum outside of it comes from too few errors and says nothing about the network
INVERSE_RANGE = (0.05, 20.0)
FEWEST_GROUPS = 10  # of each class, for parameters of their own
LARGEST = 50.0  # a larger weight or bias grows without end


def fit_temperature(label: np.ndarray, logit: np.ndarray) -> float:
    """The temperature T that minimises the negative log-likelihood of softmax(logit / T).

    The loss is convex in 1 / T, so the root of its derivative is its only minimum.

    Args:
        label: true classes, int64 [N].
        logit: [N, K].

    Raises:
        Refusal: the loss has no minimum, because too few predictions are wrong or too few are right.
    """
    from scipy.optimize import brentq
    from scipy.special import softmax

    logit = np.asarray(logit, dtype=np.float64)
    true = logit[np.arange(len(label)), label].mean()

    def slope(inverse: float) -> float:
        return float((softmax(inverse * logit, axis=1) * logit).sum(axis=1).mean() - true)

    low, high = INVERSE_RANGE
    if slope(high) < 1e-9:  # the softmax is saturated, and all but all images are right
        raise Refusal(
            "no temperature fits: the loss falls without end as T goes to 0, because too few images are wrong"
        )
    if slope(low) > 0:
        raise Refusal(
            "no temperature fits: the loss falls without end as T grows, because the predictions are not better than"
            " chance"
        )
    return 1 / float(brentq(slope, low, high, xtol=1e-14))


def fit_vector(label: np.ndarray, logit: np.ndarray, cluster: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of each class, [K] and [K], that minimise the negative log-likelihood.

    The probabilities are softmax(weight * logit + bias). The biases sum to 0.

    Args:
        label: true classes, int64 [N].
        logit: [N, K].
        cluster: number of each sample's group, int64 [N].

    Raises:
        Refusal: a class has fewer than ten groups, or the loss has no minimum.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    logit = np.asarray(logit, dtype=np.float64)
    n, k = logit.shape
    fewest = min(len(np.unique(cluster[label == c])) for c in range(k))
    if fewest < FEWEST_GROUPS:
        raise Refusal(f"a class has only {fewest} groups; its own weight and bias need {FEWEST_GROUPS}")
    truth = np.eye(k)[label]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        log_prob = log_softmax(parameters[:k] * logit + parameters[k:], axis=1)
        residual = (np.exp(log_prob) - truth) / n
        return -float((log_prob * truth).sum() / n), np.concatenate(
            [(residual * logit).sum(axis=0), residual.sum(axis=0)]
        )

    result = minimize(loss, np.repeat([1.0, 0.0], k), jac=True, method="BFGS", options={"gtol": 1e-7})
    if np.abs(result.jac).max() > 1e-5 or np.abs(result.x).max() > LARGEST or result.fun < 1e-5:
        raise Refusal("no weights fit: the loss falls without end, because too few images of some class are wrong")
    weight, bias = result.x[:k], result.x[k:]
    return weight, bias - bias.mean()


def scaled(logit: np.ndarray, weight: float | np.ndarray = 1.0, bias: float | np.ndarray = 0.0) -> np.ndarray:
    """Probabilities float64 [N, K] of logits [N, K], with a weight and bias of all classes or of each [K]."""
    from scipy.special import softmax

    return softmax(weight * np.asarray(logit, dtype=np.float64) + bias, axis=1)
