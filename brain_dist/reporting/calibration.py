"""The page about a run's calibration, ``report/calibration.html``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from brain_dist import __version__
from brain_dist.calibration import words
from brain_dist.calibration.conformal import METHODS, wanted_coverage
from brain_dist.calibration.measures import ERRORS
from brain_dist.calibration.record import Calibration
from brain_dist.calibration.scaling import scaled
from brain_dist.config import read_sections
from brain_dist.judging.predictions import Predictions
from brain_dist.pages.template import page_template
from brain_dist.pages.text import display_name
from brain_dist.reporting import plots

TEMPLATE = "reporting/calibration.html.jinja"
MEASURE_NAMES = {
    "ece": "ECE, bins of equal width",
    "ece_mass": "ECE, bins of equal numbers",
    "ece_class": "class-wise ECE",
    "brier": "Brier score",
    "nll": "negative log-likelihood",
}
SCALINGS = {"none": "as trained", "temperature": "temperature", "vector": "vector scaling"}


def render_calibration(
    run: Path,
    fit: str,
    calibration: Calibration,
    tables: dict[str, Predictions],
    judged: dict[str, dict[str, Any]],
    left_out: dict[str, str],
) -> str:
    """The page as HTML.

    Args:
        run: the run's folder.
        fit: name of the table of the fit.
        calibration: what was fitted.
        tables: the tables that judge it.
        judged: what they say, see :func:`brain_dist.calibration.judge.judge`.
        left_out: name → why a table does not judge.
    """
    figures: dict[str, list[str]] = {}
    for name, table in tables.items():
        pairs = {"none": scaled(table.logit)}
        if not isinstance(calibration.temperature, str):
            pairs["temperature"] = calibration.probabilities(table.logit)
        figures[name] = [
            plots.reliability_diagram(
                table.label,
                prob,
                judged[name]["scaling"][scaling]["ece"]["value"],
                name=f"reliability-{number}-{scaling}",
                title=SCALINGS[scaling].capitalize(),
            )
            for number, (scaling, prob) in enumerate(pairs.items(), start=10 * len(figures))
        ]
    return page_template(TEMPLATE).render(
        run=run.resolve().name,
        fit=fit,
        calibration=calibration,
        class_names=[display_name(name) for name in calibration.classes],
        judged=judged,
        left_out=left_out,
        figures=figures,
        coverage_parts={name: coverage_parts(result, calibration.classes) for name, result in judged.items()},
        good={name: is_good(result) for name, result in judged.items()},
        risk=plots.risk_coverage({name: result["selective"] for name, result in judged.items()}),
        phantom=any("phantom" in set(table.dataset) for table in tables.values()),
        chosen_on_fit=_chosen_on_fit(run),
        temperature_fits=not isinstance(calibration.temperature, str),
        vector_fits=not isinstance(calibration.vector, str),
        words=words,
        measures=MEASURE_NAMES,
        errors=ERRORS,
        scalings=SCALINGS,
        methods=METHODS,
        wanted_coverage=wanted_coverage,
        sizes=np.arange(len(calibration.classes) + 1).tolist(),
        version=__version__,
    )


def coverage_parts(result: dict[str, Any], classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Images, groups and coverage by every method, of each class that occurs and of each collection if several."""
    fitted = {method: sets for method, sets in result["conformal"].items() if "refused" not in sets}
    if not fitted:
        return []
    first = next(iter(fitted.values()))
    parts = [("by_class", name, display_name(name)) for name in classes]
    parts += [("by_dataset", name, name) for name in result["datasets"] if len(result["datasets"]) > 1]
    return [
        {
            "name": shown,
            **{key: first[part][name][key] for key in ("n", "groups")},
            "coverages": [fitted[method][part][name]["coverage"] if method in fitted else None for method in METHODS],
        }
        for part, name, shown in parts
        if first[part][name]["n"]
    ]


def is_good(result: dict[str, Any]) -> bool:
    """Whether a table shows neither miscalibration after scaling nor lost coverage."""
    scaling, sets = result["scaling"], result["conformal"]["lac"]
    return scaling.get("temperature", scaling["none"])["verdict"] != "miscalibrated" and sets.get("holds", True)


def _chosen_on_fit(run: Path) -> bool:
    """Whether the training keeps the checkpoint with the best validation score."""
    path, advice = run / "config.yaml", "copy it from where the run was trained, or delete it"
    return path.is_file() and bool(read_sections(path, advice)["train"].get("best"))
