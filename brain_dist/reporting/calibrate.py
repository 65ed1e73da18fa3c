"""Calibrate a run: fit on its validation images, judge on its other predictions, write both results and print them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brain_dist.calibration.judge import judge as judge_table
from brain_dist.calibration.judge import judge_subgroups
from brain_dist.calibration.record import FILE, Calibration, calibration_json, fit_calibration
from brain_dist.calibration.subgroups import attribute_values
from brain_dist.calibration.tables import read_fit_table, read_judged_tables, shared_groups
from brain_dist.calibration.words import coverage_sentence, error_sentence, refusals, temperature_sentence
from brain_dist.common.files import check_writable, write_together
from brain_dist.errors import Fault, UserError
from brain_dist.inference.network import write_contract
from brain_dist.inference.run import read_environment
from brain_dist.judging.predictions import Predictions
from brain_dist.reporting.calibration import render_calibration
from brain_dist.store.dataset import Dataset, open_dataset


def calibrate(run: Path, *, fit: str, judge: list[str] | None, alpha: float, by: list[str]) -> None:
    """Write RUN/calibration.json and RUN/report/calibration.html, and print what they say.

    Args:
        run: the run's folder.
        fit: name of the predictions of validation images.
        judge: names of the predictions to judge by; None takes all others of the same step.
        alpha: wanted share of sets without the true class, above 0 and below 0.5.
        by: columns of the index or keys of its attributes whose values are subgroups.

    Raises:
        UserError: a table does not exist or does not fit the others or the network, or the folder is not writable.
        Fault: the disk is full.
    """
    if not 0 < alpha < 0.5:
        raise UserError(f"--alpha {alpha}: must be above 0 and below 0.5, such as 0.1 for sets of 90 % coverage")
    page = run / "report" / "calibration.html"
    if page.parent.is_symlink():  # a run from someone else could lead to any folder
        raise UserError(f"{page.parent} is a symbolic link; remove it")
    table = read_fit_table(run, fit)
    _require_own_classes(run, fit, table)
    tables, left_out = read_judged_tables(run, table, fit, judge)
    check_writable(run, "make it writable")
    calibration = fit_calibration(table, alpha)
    judged: dict[str, Any] = {}
    for name, other in tables.items():
        judged[name] = judge_table(calibration, other) | {"shared_groups": shared_groups(table, other)}
        judged[name]["subgroups"] = {}
        for column in by:
            values = attribute_values(column, other, _open_shards(other, name))
            judged[name]["subgroups"][column] = judge_subgroups(calibration, other, values)
    html = render_calibration(run, fit, calibration, tables, judged, left_out)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_together({run / FILE: calibration_json(calibration, judged), page: html})
        if (run / "environment.json").is_file():  # not for adopted predictions
            write_contract(run)
    except OSError as error:
        raise Fault(f"{run} cannot be written ({error.strerror}); free some space") from None
    _print(fit, calibration, judged, left_out)
    print(f"calibration: {run / FILE}\npage: {page}")


def _require_own_classes(run: Path, fit: str, table: Predictions) -> None:
    """Check that a table has the classes of the run's network, to whose logits the calibration is applied.

    Raises:
        UserError: it has others, as that of shards with two classes has.
    """
    if not (run / "environment.json").is_file():  # adopted predictions
        return
    classes = tuple(read_environment(run)["classes"])
    if table.classes != classes:
        raise UserError(
            f"--fit {fit}: these predictions are of the classes {', '.join(table.classes)}, and the network has"
            f" {', '.join(classes)}; what is fitted on them does not fit its outputs: calibrate on validation images of"
            " its own classes, such as --fit val"
        )


def _open_shards(predictions: Predictions, name: str) -> Dataset:
    """The shards of a table, whose index has the subgroups."""
    dataset = open_dataset(predictions.shards)
    if dataset.version != predictions.dataset_version:
        raise UserError(f"--by: {predictions.shards} was rebuilt since {name} was evaluated; evaluate it again")
    return dataset


def _print(fit: str, calibration: Calibration, judged: dict[str, Any], left_out: dict[str, str]) -> None:
    print(f"fitted on {fit}: {calibration.images:,} images of {calibration.groups:,} groups, step {calibration.step}")
    print(temperature_sentence(calibration))
    for line in refusals(calibration):
        print(f"not fitted: {line}")
    for name, result in judged.items():
        print(f"{name} ({result['n']:,} images of {result['groups']:,} groups)")
        print(f"  {error_sentence(result)}")
        print(f"  {coverage_sentence(calibration.alpha, result)}")
        for column, subgroups in result["subgroups"].items():
            gap = subgroups["gap"]
            if gap:
                print(
                    f"  {column}: accuracy differs by {100 * gap['difference']:.1f} points between subgroups; by chance"
                    f" {100 * gap['permuted_mean']:.1f} on average (p {gap['p']:.3f})"
                )
    for name, reason in left_out.items():
        print(f"{name} does not judge: {reason}")
    if not judged:
        print("nothing judges the calibration yet: evaluate the test split, then calibrate again")
