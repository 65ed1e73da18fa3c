"""Predict a split with a loaded run, write the predictions table, and print its metrics."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from brain_dist.errors import UserError
from brain_dist.inference.run import LoadedRun

if TYPE_CHECKING:
    from brain_dist.ranks.world import World


def evaluate(loaded: LoadedRun, split: str, name: str, *, micro_batch: int, world: World) -> dict[str, Any]:
    """Predict a split on all ranks; the main one judges, and writes predictions/NAME.parquet and NAME.json.

    Returns the metrics, on the main rank.
    """
    from brain_dist.inference.logits import predict_logits
    from brain_dist.judging.predictions import predictions_from_logits, write_predictions
    from brain_dist.ranks.agreement import run_on_main
    from brain_dist.store.access import check_shards

    rows = loaded.dataset.rows(split)
    if not len(rows):
        raise UserError(f"{loaded.dataset.root} has no {split} split; rebuild it with other --fractions")
    run_on_main(world, lambda: check_shards(loaded.dataset, rows))
    batches = loaded.batches(rows, micro_batch=micro_batch, world=world)
    logits = predict_logits(loaded.model, loaded.normalize, batches, rows, world)
    predictions = predictions_from_logits(loaded.dataset, rows, logits, run=loaded.config.run.name, step=loaded.step)
    judged: dict[str, Any] = {}
    if world.is_main:
        judged = predictions.evaluate()
        folder = loaded.path / "predictions"
        write_predictions(folder / f"{name}.parquet", predictions, rows)
        (folder / f"{name}.json").write_text(json.dumps(judged, indent=1) + "\n")
    return judged


def print_metrics(judged: dict[str, Any], title: str) -> None:
    """The metrics as tables for a person."""
    from rich.console import Console
    from rich.table import Table

    def text(value: float | None, percent: bool = False) -> str:
        return "–" if value is None else f"{value:.1%}" if percent else f"{value:.3f}"

    console = Console(highlight=False)
    table = Table(title=title, title_justify="left")
    for column in ("class", "images", "sensitivity", "specificity", "precision", "F1", "AUC"):
        table.add_column(column, justify="left" if column == "class" else "right")
    names = ("sensitivity", "specificity", "precision", "f1")
    for name, values in judged["per_class"].items():
        table.add_row(name, str(values["n"]), *(text(values[k], True) for k in names), text(values["auc"]))
    macro = [text(judged[f"{k}_macro"], True) for k in names]
    table.add_row("macro", str(judged["n"]), *macro, text(judged["auc_macro"]), style="bold")
    console.print(table)
    low, high = judged["accuracy_cluster"] or judged["accuracy_wilson"]
    over = f"{judged['groups']} groups resampled" if judged["accuracy_cluster"] else "Wilson"
    console.print(
        f"accuracy {judged['accuracy']:.2%} (95 % interval {low:.1%} to {high:.1%}, {over}),"
        f" kappa {text(judged['kappa'])}, ECE {text(judged['ece'])}",
        soft_wrap=True,
    )
