"""Evaluate a run: predict a split, write the predictions table and its metrics, and print the metrics."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from brain_dist.collection.spellings import SPLITS
from brain_dist.common.files import check_writable, write_together
from brain_dist.errors import Fault, UserError
from brain_dist.inference.known import compare_with_training
from brain_dist.inference.run import NO_TUMOUR, TUMOUR, load_run
from brain_dist.judging.predictions import predictions_file, reasons_text, table_bytes
from brain_dist.pages.text import number, percent

if TYPE_CHECKING:
    import numpy as np

    from brain_dist.judging.predictions import Predictions

CLASS_METRICS = ("sensitivity", "specificity", "precision", "f1")  # columns of the printed table
PATIENCE = 7200.0  # seconds that ranks wait for the one that compares other shards with the training images


def evaluate(
    run: Path,
    *,
    split: str = "test",
    step: int | str | None = None,
    shards: str | None = None,
    allow_known: bool = False,
    name: str | None = None,
    out: Path | None = None,
    micro_batch: int = 32,
    loader: Literal["dali", "opencv", "torch"] | None = None,
    device: str = "auto",
    cache_dir: str | None = None,
) -> None:
    """Predict a split on all ranks. The main rank writes NAME.parquet and NAME.json, and prints the metrics.

    Args:
        run: the run's folder.
        split: train, val or test.
        step: optimiser steps of the checkpoint, "best", or None for the newest.
        shards: other shards than the run's own, which need a ``name``; or the run's own at another place.
        allow_known: count images of ``shards`` that training knew in the headline.
        name: name of the output files; None is the split.
        out: folder of the output files; None is ``predictions`` in the run's folder.
        micro_batch: images per rank and forward pass.
        loader: dali, opencv, torch, or None for the run's own.
        device: auto, cpu or cuda.
        cache_dir: see :func:`load_run`.

    Raises:
        UserError: the options do not fit together, or the folder is not writable.
        Fault: another rank ended, or the memory of the device is full.
        UserError, Fault: as :func:`load_run`, :func:`compare_with_training` and :meth:`LoadedRun.predict`.
    """
    from brain_dist.ranks.device import choose_device
    from brain_dist.ranks.group import clear_faults, process_group, run_on_main
    from brain_dist.ranks.world import discover

    if name in SPLITS and name != split:
        raise UserError(f"--name {name}: these are the predictions of split {name}; choose another --name")
    if micro_batch < 1:
        raise UserError(f"--batch {micro_batch}: must be ≥ 1")
    path = predictions_file(out or run / "predictions", split if name is None else name)
    world = discover()
    torch_device = choose_device(world, device)
    with clear_faults(f"lower --batch {micro_batch}"), process_group(world, torch_device, timeout=PATIENCE):
        run_on_main(world, lambda: check_writable(path.parent, "choose another folder with --out"))
        loaded = load_run(
            run, step=step, shards=shards, loader=loader, device=str(torch_device), cache_dir=cache_dir, world=world
        )
        if loaded.dataset.version != loaded.trained_version and name in (None, *SPLITS):
            raise UserError(
                "--shards needs a --name other than train, val and test, which are the run's own predictions"
            )
        rows = loaded.rows(split)
        overlap: dict[str, Any] = {}
        run_on_main(world, lambda: overlap.update(compare_with_training(loaded, rows, allow_known=allow_known)))
        predictions = loaded.predict(split, micro_batch=micro_batch, world=world)
        if world.is_main:
            predictions = dataclasses.replace(predictions, **overlap)
            try:
                metrics = write_evaluation(path, predictions, rows)
            except OSError as error:
                raise Fault(f"{path} cannot be written ({error.strerror}); choose another folder with --out") from None
            print_metrics(metrics, f"{run}, {loaded.dataset.name}, {split} split, step {loaded.step}")
            if len(loaded.trained_classes) > len(loaded.dataset.classes):
                tumours = ", ".join(name for name in loaded.trained_classes if name != NO_TUMOUR)
                print(f"{TUMOUR}: the sum of the probabilities of {tumours}")
            print_overlap(predictions)
            print(f"predictions: {path}")


def write_evaluation(path: Path, predictions: Predictions, expected_rows: np.ndarray) -> dict[str, Any]:
    """Write a predictions table to ``path`` and its metrics to a JSON file beside it; return the metrics.

    The metrics are those of :attr:`Predictions.headline`. For other shards than the training's, ``other_shards`` tells
    which images training knew, with the metrics of those ``known``, those ``unknown``, and ``all``.

    Args:
        path: the table's file; its folder is created.
        predictions: the table.
        expected_rows: rows [N] that must be in the table, see :func:`brain_dist.judging.predictions.table_bytes`.
    """
    metrics = predictions.headline.evaluate()
    if predictions.not_compared is not None:
        metrics["other_shards"] = {"compared": False, "reason": predictions.not_compared}
    elif predictions.known is not None:
        masks = {"known": predictions.is_known, "unknown": ~predictions.is_known, "all": predictions.row >= 0}
        metrics["other_shards"] = {
            "compared": True,
            "allow_known": predictions.allow_known,
            "reasons": Counter(predictions.known[predictions.is_known]),
            **{name: predictions.evaluate(mask) if mask.any() else None for name, mask in masks.items()},
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metrics, indent=1) + "\n"
    write_together({path: table_bytes(predictions, expected_rows), path.with_suffix(".json"): text.encode()})
    return metrics


def print_metrics(metrics: dict[str, Any], title: str) -> None:
    """Print what :func:`brain_dist.judging.metrics.evaluate_predictions` returns."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", show_edge=False)  # fits 80 columns
    for column in ("class", "images", "sensitivity", "specificity", "precision", "F1", "AUC"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, values in metrics["per_class"].items():
        percentages = [percent(values[metric]) for metric in CLASS_METRICS]
        table.add_row(escape(name), str(values["n"]), *percentages, number(values["auc"]))
    percentages = [percent(metrics[f"{metric}_macro"]) for metric in CLASS_METRICS]
    table.add_row("macro", str(metrics["n"]), *percentages, number(metrics["auc_macro"]), style="bold")
    Console(highlight=False).print(table)
    low, high = metrics["accuracy_cluster"] or metrics["accuracy_wilson"]
    method = f"{metrics['groups']} groups resampled" if metrics["accuracy_cluster"] else "Wilson"
    print(
        f"accuracy {metrics['accuracy']:.2%} (95 % interval {low:.1%} to {high:.1%}, {method}),"
        f" kappa {number(metrics['kappa'])}, ECE {number(metrics['ece'])}"
    )


def print_overlap(predictions: Predictions) -> None:
    """Print what training knew of other shards."""
    if predictions.not_compared is not None:
        print(
            f"warning: could not look for training images among the evaluated ones: {predictions.not_compared}",
            file=sys.stderr,
        )
    elif predictions.known is not None:
        known = predictions.is_known
        if not known.any():
            print("training knew none of these images or patients")
            return
        counted = "counted above (--allow-known)" if predictions.allow_known else "left out above"
        accuracies = [
            f"{percent(predictions.evaluate(mask)['accuracy'])} {name}"
            for name, mask in (("on them", known), ("without them", ~known))
            if mask.any()
        ]
        print(
            f"training knew {known.sum():,} of {len(known):,} images ({reasons_text(predictions.known)}), {counted};"
            f" accuracy {', '.join(accuracies)}"
        )
