"""The headline of a comparison: models on the same images, with patients as the independent units.

Holds for any predictions of this project: groups (a patient with all images, and copies) are resampled together, and
one set of resamples serves all models and metrics, so that all differences are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import lcm
from typing import Any

import numpy as np

from brain_dist.comparison.delong import macro_auc_test
from brain_dist.comparison.images import holm
from brain_dist.comparison.sign_flip import sign_flip_p
from brain_dist.comparison.tables import Model, Tables
from brain_dist.judging.clusters import RESAMPLES, ClassGroups, Resampled, resample, share_interval
from brain_dist.judging.refusal import Refusal, or_refusal
from brain_dist.judging.weighted import MEANS, METRICS, RANKING, WeightedMetrics, contributions

ALPHA = 0.05
SIGN_FLIP, DELONG, BOOTSTRAP = "sign flips of groups", "DeLong, groups as clusters", "bootstrap of groups"


class Draws:
    """Resampled metrics of all models of a comparison; those that rank scores are undefined where folds are joined.

    Args:
        tables: the aligned predictions.
        names: metrics, as :class:`~brain_dist.judging.weighted.WeightedMetrics` takes them.
        resamples: number of resamples.
    """

    def __init__(self, tables: Tables, names: Sequence[str], resamples: int = RESAMPLES) -> None:
        self._columns: dict[tuple[str, str], list[int]] = {}
        statistics: list[WeightedMetrics] = []
        for model in tables.models:
            for prob in model.prob:
                for offset, name in enumerate(names):
                    column = len(statistics) * len(names) + offset
                    self._columns.setdefault((model.name, name), []).append(column)
                statistics.append(WeightedMetrics(tables.label, prob, tables.cluster, names))
        self._all = resample(
            lambda weights: np.concatenate([statistic(weights) for statistic in statistics], axis=1),
            tables.cluster,
            resamples,
        )
        for (_, name), columns in self._columns.items():
            if name in RANKING and tables.networks() > 1:
                for values in vars(self._all).values():
                    values[..., columns] = np.nan

    def of(self, model: str, name: str) -> Resampled:
        """A metric of a model: the mean over its runs."""
        return self._all.mean(self._columns[model, name])

    def runs(self, model: str, name: str) -> list[float | None]:
        """A metric of each run of a model; None where undefined."""
        values = self._all.estimate[self._columns[model, name]]
        return [None if np.isnan(value) else float(value) for value in values]


def compare_metric(tables: Tables, draws: Draws, name: str, margin: float | None = None) -> dict[str, Any]:
    """Compare all pairs of models by one metric.

    Args:
        tables: the aligned predictions.
        draws: their resampled metrics.
        name: the metric.
        margin: largest loss that still counts as not inferior; None does not test this.

    Returns:
        ``models``: name → ``value``, ``runs``, ``sd_runs`` (spread of the training, None for one run), ``interval``
        (of other patients) or ``refused``, ``rank`` (95 % simultaneous interval), ``tier``; the best model first.
        ``pairs``: see :func:`compare_pair`, with ``p_holm`` and ``separable`` (``p_holm`` < 5 %), and ``smallest`` for
        the adjusted test; ``family``: number of p-values that Holm's adjustment covers; ``tiers``: lists of names.
    """
    from scipy.stats import norm

    better = 1.0 if METRICS[name].higher_is_better else -1.0
    values = {model.name: float(draws.of(model.name, name).estimate) for model in tables.models}
    # stable: equal or undefined values stay in the order of the command, undefined ones last
    order = sorted(
        tables.models, key=lambda m: -better * values[m.name] if values[m.name] == values[m.name] else np.inf
    )
    pairs = [compare_pair(tables, draws, name, a, b, margin) for a, b in combinations(order, 2)]
    tested = [pair for pair in pairs if pair["p"] is not None]
    for pair in pairs:
        if pair["smallest"] is not None:  # the first of Holm's steps is the strictest
            pair["smallest"] *= norm.isf(ALPHA / 2 / max(1, len(tested))) / norm.isf(ALPHA / 2)
    for pair, p in zip(tested, holm([pair["p"] for pair in tested]), strict=True):
        pair |= {"p_holm": p, "separable": p < ALPHA}
    names = [model.name for model in order]
    separable = {frozenset((pair["a"], pair["b"])) for pair in pairs if pair["separable"]}
    tiers = separate_tiers(names, separable)
    models = {}
    for model in order:
        runs = draws.runs(model.name, name)
        defined = [value for value in runs if value is not None]
        models[model.name] = {
            "value": None if np.isnan(values[model.name]) else values[model.name],
            "runs": runs,
            "sd_runs": float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
            **or_refusal(_interval, tables, draws.of(model.name, name), name),
            "rank": rank_interval(names, separable, model.name),
            "tier": next(number for number, tier in enumerate(tiers, start=1) if model.name in tier),
        }
    return {"models": models, "pairs": pairs, "family": len(tested), "tiers": tiers}


def compare_pair(
    tables: Tables, draws: Draws, name: str, a: Model, b: Model, margin: float | None = None
) -> dict[str, Any]:
    """Compare two models by one metric.

    Returns:
        ``a``, ``b``; ``difference`` (of A - B; None if undefined); its 95 % ``interval`` (BCa) and ``percentile``
        interval, or ``refused``; ``smallest``: half the interval's width, about the smallest difference that this table
        can show for one pair (None if refused); ``p`` (None if refused, with ``p_refused``) and the ``test`` that gives
        it; ``p_holm`` (None), ``separable`` (False); ``not_inferior``: None, or whether A and whether B lose at most
        ``margin``.
    """
    paired = draws.of(a.name, name) - draws.of(b.name, name)

    def intervals() -> dict[str, Any]:
        require_carried(tables, name)
        return {"interval": paired.bca(), "percentile": paired.percentile()}

    pair: dict[str, Any] = {
        "a": a.name,
        "b": b.name,
        "difference": None if np.isnan(paired.estimate) else float(paired.estimate),
        **or_refusal(intervals),
        "smallest": None,
        "test": SIGN_FLIP if name in MEANS else DELONG if name == "auc_macro" else BOOTSTRAP,
        "p": None,
        "p_holm": None,
        "separable": False,
        "not_inferior": None,
    }
    tested = or_refusal(lambda: {"p": _p_value(tables, paired, name, a, b)})
    pair |= tested if "p" in tested else {"p_refused": tested["refused"]}
    if "interval" in pair:
        low, high = pair["interval"]
        pair["smallest"] = (high - low) / 2
        if margin is not None:
            low, high = (low, high) if METRICS[name].higher_is_better else (-high, -low)
            pair["not_inferior"] = {"a": low > -margin, "b": high < margin}
    return pair


def _p_value(tables: Tables, paired: Resampled, name: str, a: Model, b: Model) -> float:
    """The p-value of a pair, by the test that the metric allows."""
    if name == "auc_macro":
        require_one_network(tables)
        return float(macro_auc_test([a.prob, b.prob], tables.label, tables.cluster)["p"])
    if name not in MEANS:
        require_carried(tables, name)
        return paired.p_value()
    # sums over runs instead of means, so that hits stay whole numbers and have their exact distribution
    runs = lcm(len(a.prob), len(b.prob))
    sides = [
        np.sum([contributions(name, tables.label, prob) for prob in model.prob], axis=0) * (runs // len(model.prob))
        for model in (a, b)
    ]
    return sign_flip_p(np.bincount(tables.cluster, weights=sides[0] - sides[1]))


def _interval(tables: Tables, metric: Resampled, name: str) -> dict[str, Any]:
    """The 95 % interval of a model's metric; of an accuracy of 0 or 1 Wilson's."""
    require_carried(tables, name)
    if name == "accuracy":
        return share_interval(metric)
    return {"interval": metric.bca(), "interval_of": "BCa"}


def require_carried(tables: Tables, name: str) -> None:
    """Raise a Refusal unless the images can carry an interval of the metric."""
    if name in RANKING:
        require_one_network(tables)
    _class_groups(tables).check(name)


def require_one_network(tables: Tables) -> None:
    """Raise a Refusal if folds are joined: each has a network of its own, whose scores have a scale of their own."""
    if tables.networks() > 1:
        raise Refusal(
            f"the scores are those of {tables.networks()} networks, one for each fold, which cannot be ranked together;"
            " `--unit fold` compares within folds"
        )


def separate_tiers(names: Sequence[str], separable: set[frozenset[str]]) -> list[list[str]]:
    """Divide models, best first, wherever every model above is separable from every model below."""
    tiers: list[list[str]] = [[]]
    for position, name in enumerate(names):
        above, below = names[:position], names[position:]
        if above and all(frozenset((a, b)) in separable for a in above for b in below):
            tiers.append([])
        tiers[-1].append(name)
    return tiers


def rank_interval(names: Sequence[str], separable: set[frozenset[str]], name: str) -> list[int]:
    """Ranks [best, worst] that a model can have, given the pairs that differ (Mogstad et al. 2024).

    Args:
        names: the models, best first.
        separable: pairs of models that differ; with Holm's adjustment all ranks hold together with 95 % confidence.
        name: the model.
    """
    position = names.index(name)
    better = sum(frozenset((name, other)) in separable for other in names[:position])
    worse = sum(frozenset((name, other)) in separable for other in names[position + 1 :])
    return [1 + better, len(names) - worse]


def groups_of_classes(tables: Tables) -> list[int]:
    """Number of groups with images of each class."""
    return [int(groups) for groups in _class_groups(tables).having]


def _class_groups(tables: Tables) -> ClassGroups:
    return ClassGroups.count(tables.label, tables.cluster, tables.classes)


def sensitivity_difference(tables: Tables, draws: Draws, c: int, a: Model, b: Model) -> dict[str, Any]:
    """Difference of two models' sensitivities for class ``c``, with its 95 % BCa interval.

    Raises:
        Refusal: the class has fewer than ten groups, or as :meth:`~brain_dist.judging.clusters.Resampled.bca`.
    """
    _class_groups(tables).check("sensitivity", c)
    paired = draws.of(a.name, f"sensitivity:{c}") - draws.of(b.name, f"sensitivity:{c}")
    return {"difference": float(paired.estimate), "interval": paired.bca()}
