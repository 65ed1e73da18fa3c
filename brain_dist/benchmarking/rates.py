"""``--rates``: the learning rate of each model, chosen on validation images from the same list for all of them.

Every model is trained once with each rate, with the first seed. These trainings are cells like the others, so the best
rate's is not repeated. Their grid is in ``rates.json``. The test split is not opened.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from brain_dist.benchmarking.grid import Cell, Grid, Source, Test, plan
from brain_dist.config import Config
from brain_dist.errors import EXIT_PREEMPTED, Fault, UserError
from brain_dist.training.nonfinite import NONFINITE

if TYPE_CHECKING:
    from brain_dist.benchmarking.folder import Folder

VALIDATION = Test("val", split="val")
RECORD = "rates.json"
# model → learning rate → train.best on validation, None if it is undefined or the training diverged
Trials = dict[str, dict[float, float | None]]


def parse_rates(text: str, variants: Mapping[str, Config], declared: Sequence[str], folds: int | None) -> list[float]:
    """Parse ``--rates``; returns them in ascending order.

    Args:
        text: value of ``--rates``.
        variants: what the table calls a network → the settings of its trainings.
        declared: values of ``--lr``.
        folds: number of folds, or None.

    Raises:
        UserError: it is not a list of two or more different positive numbers, or validation may choose nothing.
    """
    try:
        rates = [float(word) for word in text.split(",")]
    except ValueError:
        rates = []
    if len(rates) < 2 or len(set(rates)) < len(rates) or not all(0 < rate < math.inf for rate in rates):
        raise UserError(
            f"--rates {text}: must be two or more different positive numbers separated by commas, such as 3e-4,1e-3"
        )
    if declared:
        raise UserError(f"--rates chooses the rates of all models; leave --lr {declared[0]} out")
    if folds is not None:
        raise UserError("--rates with --folds: the validation images of a fold are test images of another; use --lr")
    if not next(iter(variants.values())).train.best:
        raise UserError(
            "--rates needs train.best, the metric that chooses, such as f1_macro; with train.best=null the validation"
            " images choose nothing"
        )
    return sorted(rates)


def plan_trials(
    variants: Mapping[str, Config],
    rates: Sequence[float],
    seed: int,
    source: Source,
    folder: Folder,
    processes: int | None,
) -> Grid:
    """One training for each model and rate, evaluated on the validation split.

    Args:
        variants: what the table calls a network → the settings of its trainings.
        rates: the learning rates.
        seed: seed of every training.
        source: training shards.
        folder: the benchmark's folder.
        processes: ranks of a training; None if SLURM decides.

    Raises:
        UserError: as :func:`~brain_dist.benchmarking.grid.plan`.
    """
    candidates = {
        candidate(model, rate): replace(config, optim=replace(config.optim, lr=rate))
        for model, config in variants.items()
        for rate in rates
    }
    return plan(candidates, [seed], None, [source], folder.out, processes, {source.name: (VALIDATION,)})


def candidate(model: str, rate: float) -> str:
    """What the board calls a model with one rate."""
    return f"{model} at {rate:g}"


def run_trials(grid: Grid, folder: Folder, command: str, *, slurm: bool) -> int | None:
    """Run the trials that are missing, or submit them as a SLURM job array.

    A trial whose loss was not finite is a result, too: the same training would end the same way, so it is not repeated.

    Args:
        grid: the trials.
        folder: the benchmark's folder.
        command: the command line of the benchmark.
        slurm: submit them.

    Returns:
        None if all trials are finished or diverged; otherwise the exit code: 75 if asked to stop, 0 if jobs were
        submitted.

    Raises:
        UserError: the folder has other conditions, a training refuses its settings, or jobs cannot be submitted.
        Fault: a trial failed for another reason.
    """
    from brain_dist.benchmarking.conditions import require_same_conditions
    from brain_dist.benchmarking.slurm import require_slurm, submit_cells
    from brain_dist.benchmarking.trainings import Commands, board_name, cell_board, run_cells

    trials = replace(folder, record_file=RECORD)
    with folder.locked() as lock:
        if slurm:
            require_slurm(folder)
        require_same_conditions(grid.record(), trials)
        trials.claim(grid, command)
        grid = replace(grid, cells=tuple(cell for cell in grid.cells if not has_diverged(cell, folder)))
        if not grid.cells:
            return None
        waiting = sum(not folder.is_finished(cell) for cell in grid.cells)
        if slurm:
            job = submit_cells(grid, folder, costs=False)
            if job:
                print(f"job {job}: {waiting} trials of learning rates; when it has ended, the same command goes on")
            return 0 if job else None
        print(f"learning rates: {len(grid.cells)} trials, {waiting} of them to run", file=sys.stderr, flush=True)
        with Commands(lock).forwarding() as commands, cell_board(grid, folder) as board:
            run_cells(grid, folder, commands, board)
    if commands.stop_requested:
        print("stopped while learning rates were tried; the same command goes on", file=sys.stderr)
        return EXIT_PREEMPTED
    diverged = {board_name(cell, grid) for cell in grid.cells if has_diverged(cell, folder)}
    failed = [name for name in board.failed if name not in diverged]
    if failed:
        raise Fault(f"{len(failed)} trials of learning rates failed, first {failed[0]}: {board.note[failed[0]]}")
    return None


def has_diverged(cell: Cell, folder: Folder) -> bool:
    """Whether the training of a trial ended because its loss or gradient was not finite (``train.skip_limit``)."""
    return not folder.is_finished(cell) and any((folder.run(cell.key) / NONFINITE).glob("*.json"))


def read_trials(grid: Grid, variants: Mapping[str, Config], rates: Sequence[float], folder: Folder) -> Trials:
    """The metric ``train.best`` of every trial on the validation images; of the loss, the negative log-likelihood.

    None if the training diverged, or the metric is undefined or not finite.

    Raises:
        UserError: a predictions table is damaged.
    """
    from brain_dist.judging.metrics import evaluate_predictions
    from brain_dist.judging.predictions import read_predictions

    cells = {cell.model: cell for cell in grid.cells}
    trials: Trials = {}
    for model, config in variants.items():
        trials[model] = {}
        for rate in rates:
            cell = cells[candidate(model, rate)]
            trials[model][rate] = None
            if has_diverged(cell, folder):
                continue
            predictions = read_predictions(folder.predictions(cell.key, VALIDATION.name))
            metrics = evaluate_predictions(predictions.label, predictions.prob, predictions.classes)
            value = metrics["nll" if config.train.best == "loss" else str(config.train.best)]
            if value is not None and math.isfinite(value):
                trials[model][rate] = value
    return trials


def best_rates(trials: Trials, variants: Mapping[str, Config]) -> dict[str, Config]:
    """The settings of each model with its best rate, of equal ones the lowest; prints a line for each model.

    Raises:
        UserError: no rate of a model has a value of the metric.
    """
    chosen = {}
    for model, config in variants.items():
        sign = -1 if config.train.best == "loss" else 1
        values = {rate: sign * value for rate, value in sorted(trials[model].items()) if value is not None}
        if not values:
            raise UserError(
                f"{model}: no learning rate has a {config.train.best} on the validation split: the trainings diverged,"
                " or it is undefined there; give lower --rates, or set another train.best"
            )
        rate = max(values, key=values.__getitem__)
        edge = "; at the end of the list: a rate beyond it may be better" if is_at_end(rate, trials[model]) else ""
        print(f"{model}: learning rate {rate:g}, by {trials_text(trials[model])}{edge}", file=sys.stderr)
        chosen[model] = replace(config, optim=replace(config.optim, lr=rate))
    return chosen


def is_at_end(rate: float, trials: Mapping[float, float | None]) -> bool:
    """Whether a rate is the lowest or the highest of those that were tried."""
    return rate in (min(trials), max(trials))


def trials_text(trials: Mapping[float, float | None]) -> str:
    """The rates that were tried and their metric, such as ``0.001: 0.912, 0.003: 0.934``."""
    return ", ".join(f"{rate:g}: {'–' if value is None else f'{value:.3f}'}" for rate, value in sorted(trials.items()))


def recorded_trials(record: Mapping[str, Any]) -> Trials:
    """The trials of a benchmark.json, whose keys are texts; empty if no rates were tried."""
    trials = record.get("learning_rate_trials") or {}
    return {model: {float(rate): value for rate, value in tried.items()} for model, tried in trials.items()}


def rates_sentence(record: Mapping[str, Any]) -> str:
    """How the learning rates of a benchmark came about, as a sentence for readers of its table."""
    rates, trials = record["learning_rates"], recorded_trials(record)
    noun = "method" if "methods" in record else "model"
    if trials:
        edge = [model for model, tried in trials.items() if is_at_end(rates[model], tried)]
        return (
            f"The learning rate of each model is the best of {len(next(iter(trials.values())))} by"
            f" {record['common']['train.best']} on validation images, each tried in one training."
            + (f" At the end of the list, so a rate beyond may be better: {', '.join(edge)}." if edge else "")
        )
    if len(set(rates.values())) == 1:
        rate = next(iter(rates.values()))
        return f"All {noun}s have the learning rate {rate:g}: a {noun} that another one suits is at a disadvantage."
    return f"Learning rates were declared for each {noun}; how they were found is not recorded here."
