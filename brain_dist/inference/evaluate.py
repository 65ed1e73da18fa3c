"""Evaluate a run: predict a split, write the predictions table and its metrics, and print the metrics."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from brain_dist.common.files import write_atomically
from brain_dist.errors import UserError
from brain_dist.inference.merged_classes import NO_TUMOUR, TUMOUR
from brain_dist.inference.metrics_table import print_metrics
from brain_dist.inference.run import load_run

if TYPE_CHECKING:
    import numpy as np

    from brain_dist.judging.predictions import Predictions


@dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate, see ``brain-dist evaluate --help``.

    Attributes:
        run: the run's folder.
        split: train, val or test.
        step: optimiser steps of the checkpoint, "best", or None for the newest.
        shards: other shards than the run's own; needs ``name``.
        name: name of the output files; None is the split.
        micro_batch: images per rank and forward pass.
        loader: dali, torch, or None for the run's own.
        device: auto, cpu or cuda.

    Raises:
        UserError: the options do not fit together.
    """

    run: Path
    split: str = "test"
    step: int | str | None = None
    shards: str | None = None
    name: str | None = None
    micro_batch: int = 32
    loader: Literal["dali", "torch"] | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.shards and self.name in (None, "train", "val", "test"):
            raise UserError(
                "--shards needs a --name other than train, val and test, which are the run's own predictions"
            )
        if self.micro_batch < 1:
            raise UserError(f"--batch {self.micro_batch}: must be ≥ 1")


def evaluate(options: EvaluationOptions) -> None:
    """Predict a split on all ranks. The main rank writes predictions/NAME.parquet and .json, and prints the metrics.

    Raises:
        UserError, Fault: as :func:`load_run` and :meth:`LoadedRun.predict`.
    """
    from brain_dist.ranks.device import choose_device
    from brain_dist.ranks.group import process_group
    from brain_dist.ranks.world import discover

    world = discover()
    device = choose_device(world, options.device)
    with process_group(world, device):
        run = load_run(options.run, step=options.step, shards=options.shards, loader=options.loader, device=str(device))
        predictions = run.predict(options.split, micro_batch=options.micro_batch, world=world)
        if world.is_main:
            path = options.run / "predictions" / f"{options.name or options.split}.parquet"
            metrics = write_evaluation(path, predictions, run.dataset.rows(options.split))
            title = f"{options.run}, {run.dataset.name}, {options.split} split, step {run.step}"
            print_metrics(metrics, title)
            if len(run.trained_classes) > len(run.dataset.classes):
                tumours = ", ".join(name for name in run.trained_classes if name != NO_TUMOUR)
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
