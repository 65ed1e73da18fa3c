"""Tests of the comparison against published values and independent implementations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from brain_dist.comparison.delong import auc_covariance, auc_test, macro_auc_test, placements
from brain_dist.comparison.folds import corrected_t, correlated_bayes, five_by_two
from brain_dist.comparison.images import cochran, holm, mcnemar
from brain_dist.comparison.ranking import (
    aligned_friedman,
    critical_difference,
    friedman,
    iman_davenport,
    mean_ranks,
    nemenyi,
    wilcoxon,
)
from brain_dist.comparison.sign_flip import sign_flip_p
from brain_dist.judging.metrics import wilson_interval

# fmt: off
# Demšar 2006, Table 6: AUC of C4.5, C4.5+m, C4.5+cf, C4.5+m+cf on 14 data sets
DEMSAR = np.array([
    [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
    [1, 1, 1, 1], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.975, 0.975], [0.957, 0.978, 0.946, 0.970],
])
# Hollander & Wolfe: times to round first base, 22 players × 3 methods; smaller is better
ROUNDING = np.array([
    [5.40, 5.50, 5.55], [5.85, 5.70, 5.75], [5.20, 5.60, 5.50], [5.55, 5.50, 5.40], [5.90, 5.85, 5.70],
    [5.45, 5.55, 5.60], [5.40, 5.40, 5.35], [5.45, 5.50, 5.35], [5.25, 5.15, 5.00], [5.85, 5.80, 5.70],
    [5.25, 5.20, 5.10], [5.65, 5.55, 5.45], [5.60, 5.35, 5.45], [5.05, 5.00, 4.95], [5.50, 5.50, 5.40],
    [5.45, 5.55, 5.50], [5.55, 5.55, 5.35], [5.45, 5.50, 5.55], [5.50, 5.45, 5.25], [5.65, 5.60, 5.40],
    [5.70, 5.65, 5.55], [6.30, 6.30, 6.25],
])
# fmt: on


@pytest.mark.parametrize(
    ("a_only", "b_only", "p"), [(1, 9, 0.021484375), (5, 15, 0.04138946533), (86, 150, 3.7159361e-05)]
)
def test_sign_flips_of_single_images_are_the_exact_mcnemar_test(a_only: int, b_only: int, p: float) -> None:
    difference = np.concatenate([np.ones(a_only), -np.ones(b_only), np.zeros(30)])
    assert sign_flip_p(difference) == pytest.approx(p, rel=1e-8)
    assert sign_flip_p(difference) == pytest.approx(mcnemar(a_only, b_only, len(difference))["p"], rel=1e-12)
    assert sign_flip_p(3 * difference) == sign_flip_p(difference)


def test_sign_flips_of_patients_are_enumerated() -> None:
    rng = np.random.default_rng(0)
    whole = rng.integers(-4, 6, 12).astype(float)
    signs = np.array(np.meshgrid(*[[-1, 1]] * np.count_nonzero(whole))).reshape(np.count_nonzero(whole), -1)
    sums = np.abs(np.abs(whole[whole != 0]) @ signs)
    expected = (sums >= abs(whole.sum())).mean()
    assert sign_flip_p(whole) == pytest.approx(expected, rel=1e-12)  # by convolution
    assert sign_flip_p(whole / 7) == pytest.approx(expected, rel=1e-12)  # by enumeration
    assert sign_flip_p(np.zeros(5)) == 1
    many = rng.normal(0.25, 1, 60)
    drawn = sign_flip_p(many)
    assert drawn == sign_flip_p(many)
    reference = stats.permutation_test((many,), np.sum, permutation_type="samples", n_resamples=50_000, rng=1)
    assert drawn == pytest.approx(reference.pvalue, abs=0.005)
    assert sign_flip_p(np.full(60, 0.1)) == 1 / 100_001  # the least p of a drawn test
    assert sign_flip_p(np.full(2000, 1.0)) == pytest.approx(0, abs=1e-300)


@pytest.mark.parametrize(("b", "c", "mid"), [(1, 9, 0.01171875), (5, 15, 0.0266036987), (10, 25, 0.0113309842)])
def test_mcnemar_mid_p(b: int, c: int, mid: float) -> None:
    assert mcnemar(b, c, 100)["p_mid"] == pytest.approx(mid, rel=1e-8)


def test_mcnemar_of_agresti() -> None:
    result = mcnemar(86, 150, 1600)
    expected = {
        "chi2_corrected": 16.817797,
        "chi2": 17.355932,
        "p": 3.7159361e-05,
        "p_mid": 2.89339e-05,
        "risk_difference": -64 / 1600,
        "odds_ratio": 86 / 150,
        "cohens_g": 86 / 236 - 0.5,
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected, rel=2e-6)
    assert mcnemar(3, 3, 10)["p_mid"] == pytest.approx(1)
    assert mcnemar(4, 0, 10)["odds_ratio"] is None


def test_cochrans_q_and_holm() -> None:
    rows = ["110", "111", "010", "100", "110", "111", "010", "110", "100", "111", "000", "110"]
    correct = np.array([[digit == "1" for digit in row] for row in rows])
    assert cochran(correct) == pytest.approx({"q": 9.0, "df": 2, "p": 0.0111089965}, rel=1e-8)
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.0001, 0.021, 0.04, 0.2]) == pytest.approx([0.0004, 0.063, 0.08, 0.2])
    assert holm([]) == []


def test_wilson_interval_of_15_in_20() -> None:
    assert wilson_interval(15, 20) == pytest.approx([0.531299, 0.888138], abs=1e-6)


def scored(seed: int, n: int = 90) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores [2, n] of two models, with ties, bool [n] positives, and numbers [n] of 25 clusters."""
    rng = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(25), np.diff(np.linspace(0, n, 26).astype(int)))
    positive = rng.random(n) < 0.4
    common = rng.normal(size=25)[cluster] + rng.normal(size=n) + positive
    return np.round(common + rng.normal(size=(2, n)), 1), positive, cluster


def delong_by_pairs(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUCs [2] and their covariance [2, 2], from all pairs, as DeLong et al. 1988 write them."""
    x, y = scores[:, positive], scores[:, ~positive]
    wins = (x[:, :, None] > y[:, None, :]) + 0.5 * (x[:, :, None] == y[:, None, :])
    return wins.mean(axis=(1, 2)), np.cov(wins.mean(axis=2)) / x.shape[1] + np.cov(wins.mean(axis=1)) / y.shape[1]


@pytest.mark.parametrize("seed", range(3))
def test_delong_with_clusters_of_one_is_delong(seed: int) -> None:
    scores, positive, _ = scored(seed)
    auc, covariance = delong_by_pairs(scores, positive)
    placement = np.stack([placements(score, positive) for score in scores])
    np.testing.assert_allclose(placement[:, positive].mean(axis=1), auc, atol=1e-14)
    np.testing.assert_allclose(placement[:, ~positive].mean(axis=1), auc, atol=1e-14)
    singles = np.arange(len(positive))
    np.testing.assert_allclose(auc_covariance(placement, positive, singles), covariance, rtol=1e-12)
    result = auc_test(scores[:, None], positive, singles)
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    z = (auc[0] - auc[1]) / error
    expected = [*auc, z, 2 * stats.norm.sf(abs(z)), auc[0] - auc[1] - 1.959963984540054 * error]
    values = [*result["auc"], result["z"], result["p"], result["interval"][0]]
    np.testing.assert_allclose(values, expected, rtol=1e-10)


def test_delong_of_mlstatkit() -> None:
    """Values of MLstatkit 0.1.91, which matches pROC, for a table without random numbers; its z is of B - A."""
    i = np.arange(60)
    positive = (i * 7 % 60) < 24
    a = np.round((i * 37 % 101) / 101 + 0.35 * positive, 1)
    b = np.round((i * 53 % 97) / 97 + 0.25 * positive, 2)
    result = auc_test(np.stack([a, b])[:, None], positive, i)
    assert result["auc"] == pytest.approx([0.763888888888889, 0.7037037037037036], abs=1e-12)
    assert result["z"] == pytest.approx(0.6979177916494675, abs=1e-10)
    assert result["p"] == pytest.approx(0.48522860712503324, abs=1e-12)


def assert_same(result: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-10, err_msg=name)


def test_three_copies_of_every_image_change_nothing_if_they_are_one_cluster() -> None:
    scores, positive, _ = scored(5)
    single = auc_test(scores[:, None], positive, np.arange(90))
    tripled, thrice = np.repeat(scores, 3, axis=1)[:, None], np.repeat(positive, 3)
    assert_same(auc_test(tripled, thrice, np.repeat(np.arange(90), 3)), single)
    naive = auc_test(tripled, thrice, np.arange(270))
    assert naive["z"] == pytest.approx(single["z"] * np.sqrt(3), rel=0.02)  # as if there were three times the patients
    labels = positive.astype(int)
    prob, probs = (np.stack([1 - s, s], axis=-1)[:, None] for s in (scores, np.repeat(scores, 3, axis=1)))
    macro = macro_auc_test(prob, labels, np.arange(90))
    assert_same(macro_auc_test(probs, np.repeat(labels, 3), np.repeat(np.arange(90), 3)), macro)
    assert macro["difference"] == pytest.approx(single["difference"], abs=1e-12)  # of two classes, both AUCs are equal
    assert macro["z"] == pytest.approx(single["z"], rel=0.02)


def test_clustered_delong_has_the_spread_of_the_cluster_bootstrap() -> None:
    from brain_dist.judging.clusters import resample
    from brain_dist.judging.weighted import WeightedMetrics

    rng = np.random.default_rng(8)
    cluster = np.repeat(np.arange(120), 4)
    label = rng.integers(0, 3, 480)
    base = rng.normal(size=(120, 3))[cluster] + 1.2 * np.eye(3)[label]
    logits = base + rng.normal(size=(2, 480, 3))
    prob = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    metrics = [WeightedMetrics(label, p, cluster, ["auc_macro"]) for p in prob]
    drawn = resample(lambda w: metrics[0](w) - metrics[1](w), cluster, 4000).mean([0])
    result = macro_auc_test(prob[:, None], label, cluster)
    assert result["difference"] == pytest.approx(float(drawn.estimate), abs=1e-12)
    error = np.ptp(result["interval"]) / 2 / 1.959963984540054
    assert error == pytest.approx(drawn.values.std(), rel=0.05)


def test_demsars_table() -> None:
    paper = DEMSAR + [0, 0, 1e-4, 0] * (np.arange(14) == 12)[:, None]  # the paper ranks a pair of twins 2 and 3
    assert mean_ranks(paper) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    chi2 = friedman(paper)["chi2_uncorrected"]
    assert chi2 == pytest.approx(9.28, abs=5e-3)
    f, df, p = iman_davenport(chi2, 14, 4)
    assert (f, df, p) == (pytest.approx(3.69, abs=5e-3), [3, 39], pytest.approx(0.0198, abs=5e-5))
    assert critical_difference(14, 4) == pytest.approx(1.25, abs=5e-3)
    assert critical_difference(14, 4, alpha=0.10) == pytest.approx(1.12, abs=5e-3)
    corrected = friedman(paper)
    assert corrected["chi2"] == pytest.approx(10.228346, abs=1e-6)
    assert corrected["p"] == pytest.approx(0.0167216, abs=1e-7)
    assert corrected["kendalls_w"] == pytest.approx(10.228346 / 42, abs=1e-6)
    p_values = nemenyi(paper)["p"]
    assert [p_values[0][1], p_values[0][3], p_values[1][2]] == pytest.approx([0.0887, 0.0742, 0.2592], abs=5e-5)
    aligned = aligned_friedman(paper)
    assert aligned["t"] == pytest.approx(11.552722663, abs=1e-9)
    assert aligned["p_chi2"] == pytest.approx(0.009083488, abs=1e-9)
    assert aligned["p"] == pytest.approx(0.004, abs=0.002)
    assert aligned == aligned_friedman(paper)


def test_demsars_wilcoxon() -> None:
    result = wilcoxon(DEMSAR[:, 1], DEMSAR[:, 0])
    assert result["rank_sums"] == [93, 12]
    assert result["p_normal"] == pytest.approx(0.010968, abs=1e-6)
    ranks = stats.rankdata(np.abs(np.round(DEMSAR[:, 1] - DEMSAR[:, 0], 12)))
    reference = stats.permutation_test(
        (ranks * np.sign(DEMSAR[:, 1] - DEMSAR[:, 0]),), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert result["p"] == pytest.approx(reference.pvalue, rel=1e-12)


def test_wilcoxon_of_the_depression_data() -> None:
    """Hollander & Wolfe, Table 3.1: Hamilton scale of nine patients before and after."""
    before = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30])
    after = np.array([0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29])
    result = wilcoxon(before, after)
    assert result["rank_sums"] == [40, 5]
    assert result["p"] == 0.0390625


def test_critical_values_of_nemenyi() -> None:
    """q / √2 of R's qtukey, for two to six models."""
    own = [critical_difference(1, models) / np.sqrt(models * (models + 1) / 6) for models in range(2, 7)]
    assert own == pytest.approx([1.959964, 2.343701, 2.569032, 2.727774, 2.849705], abs=1e-6)


def test_nemenyi_of_other_examples() -> None:
    example = np.array([[4, 6, 3, 5, 4, 5], [7, 8, 6, 7, 9, 6], [6, 9, 7, 8, 8, 9]], dtype=float).T
    p = nemenyi(example)["p"]
    assert [p[0][1], p[0][2], p[1][2]] == pytest.approx([0.0545, 0.0109, 0.832], abs=5e-4)
    result = friedman(-ROUNDING)
    assert [result["chi2"], result["p"]] == pytest.approx([11.142857, 0.003805041], abs=1e-6)
    assert nemenyi(-ROUNDING)["p"][0][2] == pytest.approx(0.004410, abs=1e-6)


def test_five_by_two() -> None:
    difference = np.array([[0.01, 0.03], [0.02, 0.02], [0.04, 0.01], [0, 0.03], [0.02, 0.05]])
    expected = {"t": 0.5679618, "t_p": 0.5946155, "f": 2.3548387, "p": 0.1784267}
    assert five_by_two(difference) == pytest.approx(expected, abs=1e-7)


def test_corrected_t_and_bayes() -> None:
    difference = np.array([12, 20, -4, 31, 8, 15, 22, -10, 18, 9]) / 1000
    result = corrected_t(difference, 1 / 9)
    assert [result["t"], result["p"], result["p_naive"]] == pytest.approx([2.1623536, 0.0588416, 0.0119], abs=5e-5)
    assert [result["t"], result["p"]] == pytest.approx([2.1623536, 0.0588416], abs=1e-7)
    bayes = correlated_bayes(difference, 1 / 9)
    assert [bayes[key] for key in ("worse", "equal", "better")] == pytest.approx(
        [0.0016788, 0.3563915, 0.6419297], abs=1e-7
    )


def test_the_example_of_scikit_learn() -> None:
    """Its "Statistical comparison of models using grid search": two kernels, ten times ten folds."""
    from sklearn.datasets import make_moons
    from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
    from sklearn.svm import SVC

    x, y = make_moons(noise=0.352, random_state=1, n_samples=100)
    folds = RepeatedStratifiedKFold(n_splits=10, n_repeats=10, random_state=0)
    scores = [cross_val_score(SVC(kernel=name, random_state=0), x, y, scoring="roc_auc", cv=folds)
              for name in ("rbf", "linear")]  # fmt: skip
    difference = scores[0] - scores[1]
    result, bayes = corrected_t(difference, 10 / 90), correlated_bayes(difference, 10 / 90, rope=0.01)
    assert [result["t"], result["p"] / 2] == pytest.approx([0.750, 0.227], abs=5e-4)
    assert correlated_bayes(difference, 10 / 90, rope=0)["better"] == pytest.approx(0.773, abs=5e-4)
    assert bayes["equal"] == pytest.approx(0.432, abs=5e-4)
