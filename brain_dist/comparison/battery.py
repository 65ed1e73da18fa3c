"""The tests beside the headline, each with what it assumes, and refused in words where the data cannot carry it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from brain_dist.comparison.blocks import Folds, collections, folds, higher_better
from brain_dist.comparison.delong import auc_test, macro_auc_test
from brain_dist.comparison.folds import corrected_t, correlated_bayes, five_by_two, require_equal_folds
from brain_dist.comparison.images import cochran, holm, mcnemar
from brain_dist.comparison.paired import Draws, require_one_network, sensitivity_difference
from brain_dist.comparison.ranking import aligned_friedman, friedman, nemenyi, wilcoxon
from brain_dist.comparison.tables import Model, Tables
from brain_dist.judging.refusal import Refusal, or_refusal
from brain_dist.judging.weighted import METRICS

Row = dict[str, Any]
MACRO = "macro"  # in the place of a class
IMAGES = "images are independent of each other, which slices of one patient are not"
GROUPS = "groups (patients) are independent of each other"
COLLECTIONS = "collections are independent of each other"
HALVINGS = "the images were halved at random five times"
CORRECTED = "folds overlap in their training images by a constant share"


def image_tests(tables: Tables, draws: Draws) -> list[dict[str, Any]]:
    """McNemar, Cochran, DeLong plain and clustered, sensitivity by class.

    Args:
        tables: the aligned predictions.
        draws: resampled metrics with ``sensitivity:C`` of each class.

    Returns:
        Tests with ``test``, ``title``, ``assumes`` and ``rows``. A row has ``a`` and ``b``, the models (None for a test
        of all), ``class`` (None for all), and the result or ``refused``.
    """
    singles, classes = np.arange(len(tables)), [*range(len(tables.classes))]

    def by_class(classes: Sequence[int | None], function: Callable[[int | None, Model, Model], Row]) -> list[Row]:
        return [
            row | {"class": MACRO if c is None else tables.classes[c]}
            for c in classes
            for row in _pairs(tables, partial(function, c))
        ]

    def delong(cluster: np.ndarray) -> list[Row]:
        return by_class([*classes, None], partial(_delong, tables, cluster))

    return [
        _test("mcnemar", "McNemar, exact", IMAGES, _pairs(tables, partial(_mcnemar, tables))),
        _test("cochran", "Cochran's Q", IMAGES, [_all(lambda: cochran(_hits(tables)))]),
        _test("delong", "DeLong, AUC of a class against the rest", IMAGES, delong(singles)),
        _test("delong_clustered", "DeLong with groups as clusters (Obuchowski)", GROUPS, delong(tables.cluster)),
        _test(
            "sensitivity", "Sensitivity of a class, bootstrap of groups", GROUPS,
            by_class(classes, partial(sensitivity_difference, tables, draws)),
        ),
    ]  # fmt: skip


def collection_tests(tables: Tables, metric: str) -> list[dict[str, Any]]:
    """Friedman, Nemenyi, aligned ranks and Wilcoxon over collections; returns as :func:`image_tests`."""
    blocks = collections(tables, metric)
    table = higher_better(blocks, metric)
    column = {model.name: table[:, index] for index, model in enumerate(tables.models)}
    return [
        _test("friedman", "Friedman, and Iman–Davenport's F", COLLECTIONS, [_all(lambda: friedman(table))]),
        _test("nemenyi", "Nemenyi's critical difference", COLLECTIONS, [_all(lambda: nemenyi(table))]),
        _test("aligned_ranks", "Friedman with aligned ranks", COLLECTIONS, [_all(lambda: aligned_friedman(table))]),
        _test(
            "wilcoxon", "Wilcoxon's signed ranks, and Cliff's δ", COLLECTIONS,
            _pairs(tables, lambda a, b: wilcoxon(column[a.name], column[b.name])),
        ),
    ]  # fmt: skip


def fold_tests(tables: Tables, metric: str) -> list[dict[str, Any]]:
    """5x2cv, corrected t and Bayesian correlated t over folds, and why ranks over folds are refused.

    Returns as :func:`image_tests`.
    """
    by_fold = or_refusal(lambda: {"folds": folds(tables, metric)})
    sign = 1 if METRICS[metric].higher_is_better else -1

    def on_folds(function: Callable[[np.ndarray, Folds], Row]) -> list[Row]:
        def pair(a: Model, b: Model) -> Row:
            if "refused" in by_fold:
                raise Refusal(by_fold["refused"])
            names = [model.name for model in tables.models]
            values = by_fold["folds"].values
            return function(values[..., names.index(a.name)] - values[..., names.index(b.name)], by_fold["folds"])

        return _pairs(tables, pair)

    def constant_ratio(difference: np.ndarray, cells: Folds) -> np.ndarray:
        require_equal_folds(cells.images)
        return difference.ravel()

    return [
        _test("five_by_two", "5x2cv: combined F, paired t", HALVINGS, on_folds(lambda d, _: five_by_two(d))),
        _test(
            "corrected_t", "Corrected t (Nadeau and Bengio)", CORRECTED,
            on_folds(lambda d, cells: corrected_t(constant_ratio(d, cells), cells.ratio)),
        ),
        _test(
            "correlated_bayes", "Bayesian correlated t", CORRECTED,
            on_folds(lambda d, cells: correlated_bayes(sign * constant_ratio(d, cells), cells.ratio)),
        ),
        _test("friedman", "Friedman, Nemenyi", COLLECTIONS, [_all(_refuse_folds)]),
    ]  # fmt: skip


def _test(name: str, title: str, assumes: str, rows: list[Row]) -> dict[str, Any]:
    """A test with Holm's adjustment of its pairs' p-values, apart for each class."""
    for family in dict.fromkeys(row["class"] for row in rows):
        tested = [row for row in rows if row["class"] == family and row["a"] and "p" in row]
        for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
            row |= {"p_holm": p, "family": len(tested)}
    return {"test": name, "title": title, "assumes": assumes, "rows": rows}


def _pairs(tables: Tables, function: Callable[[Model, Model], Row]) -> list[Row]:
    return [
        {"a": a.name, "b": b.name, "class": None, **or_refusal(function, a, b)}
        for a, b in combinations(tables.models, 2)
    ]


def _all(function: Callable[[], Row]) -> Row:
    return {"a": None, "b": None, "class": None, **or_refusal(function)}


def _single(model: Model) -> np.ndarray:
    """Predicted classes [N] of a model with one run."""
    if len(model.prob) > 1:
        raise Refusal(f"{model.name} is a mean of {len(model.prob)} runs, which is neither right nor wrong on an image")
    return model.predicted[0]


def _hits(tables: Tables) -> np.ndarray:
    """bool [N, M]."""
    return np.stack([_single(model) == tables.label for model in tables.models], axis=1)


def _mcnemar(tables: Tables, a: Model, b: Model) -> Row:
    first, second = _single(a) == tables.label, _single(b) == tables.label
    return mcnemar(int(np.sum(first & ~second)), int(np.sum(second & ~first)), len(tables))


def _delong(tables: Tables, cluster: np.ndarray, c: int | None, a: Model, b: Model) -> Row:
    require_one_network(tables)
    if c is None:
        return macro_auc_test([a.prob, b.prob], tables.label, cluster)
    return auc_test([a.prob[..., c], b.prob[..., c]], tables.label == c, cluster)


def _refuse_folds() -> Row:
    raise Refusal("folds of one set share training images; blocks of ranks must be independent collections")
