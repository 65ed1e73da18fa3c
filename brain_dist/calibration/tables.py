"""Which predictions tables of a run calibrate it, and which only judge the calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brain_dist.errors import UserError
from brain_dist.judging.predictions import Predictions, predictions_file, read_predictions


def read_fit_table(run: Path, name: str) -> Predictions:
    """The predictions of validation images that calibrate a run.

    Args:
        run: the run's folder.
        name: name of the table.

    Raises:
        UserError: the table does not exist or has images of another split.
    """
    path = predictions_file(run / "predictions", name)
    if not path.is_file():
        raise UserError(f"{path} does not exist; {_command(run, name)}")
    table = read_predictions(path).headline
    splits = sorted(set(table.split) - {"val"})
    if splits:
        raise UserError(
            f"--fit {name}: these are images of split {' and '.join(splits)}, and what is fitted on them could not be"
            " judged by them; calibrate on validation images, with --fit val"
        )
    return table


def _command(run: Path, name: str) -> str:
    """The command that writes the missing table of a run's validation images."""
    named = "" if name == "val" else f" --name {name}"
    other = next(iter(sorted((run / "predictions").glob("[!.]*.parquet"))), None)
    if other is None:
        return f"write it with `brain-dist evaluate {run} --split val{named}`"
    table = read_predictions(other)
    if table.adopted is not None:
        return f"write it with `brain-dist adopt PREDICTIONS --shards {table.shards} --split val{named} --run {run}`"
    return f"write it with `brain-dist evaluate {run} --split val{named} --step {table.step}`"


def read_judged_tables(
    run: Path, fit: Predictions, fit_name: str, names: Sequence[str] | None
) -> tuple[dict[str, Predictions], dict[str, str]]:
    """The tables of a run that judge its calibration, without images that training knew.

    Args:
        run: the run's folder.
        fit: the table of the fit.
        fit_name: its name.
        names: the wanted tables; None takes all that can.

    Returns:
        Name → table; name → why a table cannot judge (only if ``names`` is None).

    Raises:
        UserError: a table in ``names`` does not exist or cannot judge.
    """
    folder = run / "predictions"
    every = sorted(path.stem for path in folder.glob("[!.]*.parquet"))
    tables, left_out = {}, {}
    for name in every if names is None else names:
        if names is None and name == fit_name:
            continue
        table = read_predictions(predictions_file(folder, name)).headline
        problem = _problem(fit, table)
        if problem is None:
            tables[name] = table
        elif names is None:
            left_out[name] = problem
        else:
            raise UserError(f"--judge {name}: {problem}")
    return tables, left_out


def _problem(fit: Predictions, table: Predictions) -> str | None:
    """Why ``table`` cannot judge what was fitted on ``fit``, or None."""
    if not len(table):
        return "training knew all of its images"
    if table.step != fit.step:
        return (
            f"it is about step {table.step}, and the calibration about step {fit.step};"
            f" evaluate again with --step {fit.step}"
        )
    if table.classes != fit.classes:
        return f"it has the classes {', '.join(table.classes)}, and the calibration {', '.join(fit.classes)}"
    if "train" in table.split:
        return "it has training images, which the network knows by heart"
    if table.dataset_version == fit.dataset_version and np.isin(table.row, fit.row).any():
        return "it has images of the fit"
    return None


def shared_groups(fit: Predictions, table: Predictions) -> int:
    """Number of groups (patients, copies) that both tables have images of; 0 for tables of different shards."""
    return len(set(fit.group) & set(table.group)) if fit.dataset_version == table.dataset_version else 0
