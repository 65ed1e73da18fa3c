"""Evaluate a run: predict a split, write the predictions table and its metrics, and print the metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from brain_dist.common.files import write_atomically
from brain_dist.errors import UserError
from brain_dist.inference.run import NO_TUMOUR, TUMOUR, load_run
from brain_dist.pages.text import number, percent

if TYPE_CHECKING:
    import numpy as np

    from brain_dist.judging.predictions import Predictions

CLASS_METRICS = ("sensitivity", "specificity", "precision", "f1")  # columns of the printed table


def evaluate(
    run: Path,
    *,
    split: str = "test",
    step: int | str | None = None,
    shards: str | None = None,
    name: str | None = None,
    micro_batch: int = 32,
    loader: Literal["dali", "torch"] | None = None,
    device: str = "auto",
) -> None:
    """Predict a split on all ranks. The main rank writes predictions/NAME.parquet and .json, and prints the metrics.

    Args:
        run: the run's folder.
        split: train, val or test.
        step: optimiser steps of the checkpoint, "best", or None for the newest.
        shards: other shards than the run's own; needs ``name``.
        name: name of the output files; None is the split.
        micro_batch: images per rank and forward pass.
        loader: dali, torch, or None for the run's own.
        device: auto, cpu or cuda.

    Raises:
        UserError: the options do not fit together, or as :func:`load_run` and :meth:`LoadedRun.predict`.
        Fault: as :func:`load_run` and :meth:`LoadedRun.predict`.
    """
    from brain_dist.ranks.device import choose_device
    from brain_dist.ranks.group import process_group
    from brain_dist.ranks.world import discover

    if shards and name in (None, "train", "val", "test"):
        raise UserError("--shards needs a --name other than train, val and test, which are the run's own predictions")
    if micro_batch < 1:
        raise UserError(f"--batch {micro_batch}: must be ≥ 1")
    world = discover()
    torch_device = choose_device(world, device)
    with process_group(world, torch_device):
        loaded = load_run(run, step=step, shards=shards, loader=loader, device=str(torch_device))
        predictions = loaded.predict(split, micro_batch=micro_batch, world=world)
        if world.is_main:
            path = run / "predictions" / f"{name or split}.parquet"
            metrics = write_evaluation(path, predictions, loaded.dataset.rows(split))
            print_metrics(metrics, f"{run}, {loaded.dataset.name}, {split} split, step {loaded.step}")
            if len(loaded.trained_classes) > len(loaded.dataset.classes):
                tumours = ", ".join(name for name in loaded.trained_classes if name != NO_TUMOUR)
                print(f"{TUMOUR}: the sum of the probabilities of {tumours}")
            print(f"predictions: {path}")


def write_evaluation(path: Path, predictions: Predictions, expected_rows: np.ndarray) -> dict[str, Any]:
    """Write a predictions table to ``path`` and its metrics to a JSON file beside it; return the metrics.

    ``expected_rows`` [N]: see :func:`brain_dist.judging.predictions.write_predictions`.
    """
    from brain_dist.judging.predictions import write_predictions

    metrics = predictions.evaluate()
    write_predictions(path, predictions, expected_rows)
    write_atomically(path.with_suffix(".json"), json.dumps(metrics, indent=1) + "\n")
    return metrics


def print_metrics(metrics: dict[str, Any], title: str) -> None:
    """Print what :func:`brain_dist.judging.metrics.evaluate_predictions` returns."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("class", "images", "sensitivity", "specificity", "precision", "F1", "AUC"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, values in metrics["per_class"].items():
        percentages = [percent(values[metric]) for metric in CLASS_METRICS]
        table.add_row(name, str(values["n"]), *percentages, number(values["auc"]))
    percentages = [percent(metrics[f"{metric}_macro"]) for metric in CLASS_METRICS]
    table.add_row("macro", str(metrics["n"]), *percentages, number(metrics["auc_macro"]), style="bold")
    console = Console(highlight=False)
    console.print(table)
    low, high = metrics["accuracy_cluster"] or metrics["accuracy_wilson"]
    method = f"{metrics['groups']} groups resampled" if metrics["accuracy_cluster"] else "Wilson"
    console.print(
        f"accuracy {metrics['accuracy']:.2%} (95 % interval {low:.1%} to {high:.1%}, {method}),"
        f" kappa {number(metrics['kappa'])}, ECE {number(metrics['ece'])}",
        soft_wrap=True,
    )
