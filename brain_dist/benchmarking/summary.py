"""What the table says of each model: the mean over its seeds, and two spreads that are never mixed.

The standard deviation over seeds says how much another training could change a number, the 95 % interval over patients
how much other patients could change the mean of these trained networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist.calibration.measures import NO_INTERVAL
from brain_dist.comparison.paired import Draws, compare_metric, require_one_network
from brain_dist.comparison.tables import read_tables
from brain_dist.judging.clusters import RESAMPLES, ClassGroups, Resampled, share_interval
from brain_dist.judging.metrics import evaluate_predictions
from brain_dist.judging.refusal import Refusal, or_refusal
from brain_dist.judging.weighted import METRICS, RANKING

HEADLINE = "accuracy"
TITLES = {name: metric.title for name, metric in METRICS.items()} | {"ece": "expected calibration error"}
CLASS_METRICS = ("sensitivity", "specificity")


def metric_values(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics of the table from those of :func:`~brain_dist.judging.metrics.evaluate_predictions`.

    Names are those of :data:`TITLES`, then ``sensitivity:CLASS`` and ``specificity:CLASS``.
    """
    by_class = {
        f"{name}:{each}": values[name] for each, values in metrics["per_class"].items() for name in CLASS_METRICS
    }
    return {**{name: metrics[name] for name in TITLES}, **by_class}


class Summary:
    """Models on the same test images.

    Attributes:
        tables: the aligned predictions: of each model the seeds that are complete.
        values: model → metric → its value of each seed, None where undefined.
    """

    def __init__(self, runs: Mapping[str, Sequence[Path]], test: str, resamples: int = RESAMPLES) -> None:
        """Read the predictions and resample the patients.

        Args:
            runs: model → folders of its runs: seeds, or all folds of each seed.
            test: name of the predictions.
            resamples: number of resamples.

        Raises:
            UserError: as :func:`~brain_dist.comparison.tables.read_tables`.
        """
        tables = self.tables = read_tables(runs, [test], fewest=1)
        # the scores of the networks of joined folds cannot be ranked together
        undefined = dict.fromkeys(RANKING) if tables.networks() > 1 else {}
        self.values = {
            model.name: [
                metric_values(evaluate_predictions(tables.label, prob, tables.classes)) | undefined
                for prob in model.prob
            ]
            for model in tables.models
        }
        columns = [f"{name}:{c}" for c in range(len(tables.classes)) for name in CLASS_METRICS]
        self._groups = ClassGroups.count(tables.label, tables.cluster, tables.classes)
        self.draws = Draws(tables, [*METRICS, *columns], resamples)

    def rows(self) -> dict[str, dict[str, Any]]:
        """Model → for each metric M: ``M_mean``, ``M_sd``, ``M_low``, ``M_high`` and ``M_refused``.

        ``M_mean`` and ``M_sd`` are over seeds, None where a seed has no value, and ``M_sd`` also with one seed.
        ``M_low`` to ``M_high`` is the 95 % interval of the mean over groups, and ``M_interval`` its method: "BCa", or
        "Wilson" for accuracies, sensitivities and specificities of 0 or 1. ``M_refused`` says why there is none, as
        for every calibration error.
        """
        return {model: self._row(model) for model in self.values}

    def _row(self, model: str) -> dict[str, Any]:
        seeds = self.values[model]
        row: dict[str, Any] = {}
        for name in seeds[0]:
            values = [seed[name] for seed in seeds]
            defined = [value for value in values if value is not None]
            complete = len(defined) == len(values)
            interval = or_refusal(self._interval, model, name)
            limits = interval.get("interval", (None, None))
            row |= {
                f"{name}_mean": float(np.mean(defined)) if complete else None,
                f"{name}_sd": float(np.std(defined, ddof=1)) if complete and len(values) > 1 else None,
                f"{name}_low": limits[0],
                f"{name}_high": limits[1],
                f"{name}_interval": interval.get("interval_of"),
                f"{name}_refused": interval.get("refused"),
            }
        return row

    def _interval(self, model: str, name: str) -> dict[str, Any]:
        if name == "ece":
            raise Refusal(f"{NO_INTERVAL} (`brain-dist benchmark page`)")
        if name in RANKING:
            require_one_network(self.tables)
        resampled = self._resampled(model, name)
        metric, _, class_name = name.partition(":")
        c = self.tables.classes.index(class_name) if class_name else None
        self._groups.check(metric, c)
        if metric == HEADLINE:
            return share_interval(resampled)
        if c is not None:
            groups = self._groups.having if metric == "sensitivity" else self._groups.others
            return share_interval(resampled, int(groups[c]))
        return {"interval": resampled.bca(), "interval_of": "BCa"}

    def _resampled(self, model: str, name: str) -> Resampled:
        """A metric of a model, the mean over its seeds."""
        metric, _, class_name = name.partition(":")
        return self.draws.of(model, f"{metric}:{self.tables.classes.index(class_name)}" if class_name else metric)

    def ranks(self) -> dict[str, Any]:
        """Tiers and intervals of ranks by accuracy, see :func:`~brain_dist.comparison.paired.compare_metric`."""
        return compare_metric(self.tables, self.draws, HEADLINE)
