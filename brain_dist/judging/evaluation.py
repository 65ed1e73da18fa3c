"""What an evaluation writes and prints: the predictions table, its metrics beside it, and both on the terminal."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist.common.files import write_together
from brain_dist.judging.predictions import Predictions, reasons_text, table_bytes
from brain_dist.pages.text import number, percent

CLASS_METRICS = ("sensitivity", "specificity", "precision", "f1")  # columns of the printed table


def write_evaluation(path: Path, predictions: Predictions, expected_rows: np.ndarray) -> dict[str, Any]:
    """Write a predictions table to ``path`` and its metrics to a JSON file beside it; return the metrics.

    The metrics are those of :attr:`Predictions.headline`. If the images were compared with those of the training,
    ``training_knew`` has the metrics of those ``known``, those ``unknown``, and ``all``.

    Args:
        path: the table's file; its folder is created.
        predictions: the table.
        expected_rows: rows [N] that must be in the table, see :func:`brain_dist.judging.predictions.table_bytes`.
    """
    metrics = predictions.headline.evaluate()
    if predictions.not_compared is not None:
        metrics["training_knew"] = {"compared": False, "reason": predictions.not_compared}
    elif predictions.known is not None:
        masks = {"known": predictions.is_known, "unknown": ~predictions.is_known, "all": predictions.row >= 0}
        metrics["training_knew"] = {
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
    interval, groups = metrics["accuracy_interval"], metrics["groups"]
    units = "independent images" if groups is None else f"{groups:,} groups"
    if "refused" in interval:
        text = f"no 95 % interval: {interval['refused']}"
    else:
        low, high = interval["interval"]
        method = f"Wilson over {units}" if interval["interval_of"] == "Wilson" else f"{units} resampled"
        text = f"95 % interval {low:.1%} to {high:.1%}, {method}"
    print(
        f"accuracy {metrics['accuracy']:.2%} ({text}), kappa {number(metrics['kappa'])}, ECE {number(metrics['ece'])}"
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
