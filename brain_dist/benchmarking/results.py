"""Read a benchmark's cells and costs, and judge its models: the rows of table.parquet, cells.parquet, costs.parquet."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brain_dist.benchmarking.conditions import differing, require_same_conditions, title
from brain_dist.benchmarking.folder import Folder
from brain_dist.benchmarking.measured import read_costs
from brain_dist.benchmarking.summary import Summary, metric_values
from brain_dist.errors import UserError
from brain_dist.judging.predictions import read_predictions
from brain_dist.tracking.attempts import complete_rows, read
from brain_dist.tracking.tracker import METRICS as LOG

Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """All models with one kind of training shards and one test.

    Attributes:
        source: name of the training shards.
        test: name of the predictions.
        rows: one row of table.parquet for each model that has a complete seed.
        summary: the models on the same images; None if no model has a complete seed.
        ranks: tiers and intervals of ranks by accuracy, or ``refused``.
    """

    source: str
    test: str
    rows: list[Row]
    summary: Summary | None
    ranks: dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark's folder holds.

    Attributes:
        record: content of benchmark.json.
        cells: rows of cells.parquet: one for each cell and test, finished or missing.
        parts: the results, one part for each kind of training shards and each test.
        costs: rows of costs.parquet, one for each model.
        notes: what a reader must know before the numbers.
    """

    record: dict[str, Any]
    cells: list[Row]
    parts: list[Part]
    costs: list[Row]
    notes: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """The cells that are not finished, in words, each with its missing tests if others are there."""
        several = len({row["source"] for row in self.cells}) > 1
        cells: dict[str, list[Row]] = {}
        for row in self.cells:
            cells.setdefault(row["cell"], []).append(row)
        lines = []
        for rows in cells.values():
            tests = [row["test"] for row in rows if row["state"] == "missing"]
            name = f"{title(rows[0])}, {rows[0]['source']}" if several else title(rows[0])
            if tests:
                lines.append(name if len(tests) == len(rows) else f"{name}, tested on {' and '.join(tests)}")
        return lines


def read_benchmark(folder: Folder) -> Benchmark:
    """Read and judge a benchmark.

    Raises:
        UserError: the folder has no benchmark, no cell is finished, a predictions table is damaged, or cells were
            trained under different conditions.
    """
    record = folder.record()
    require_same_conditions(record, folder)
    cells = [_cell_row(record, cell, test, folder) for cell in record["cells"] for test in cell["tests"]]
    if all(row["state"] == "missing" for row in cells):
        raise UserError(f"no cell in {folder.out} is finished yet; run `brain-dist benchmark run {folder.out}` first")
    order = dict.fromkeys((row["source"], row["test"]) for row in cells)
    parts = [_part(record, source, test, cells, folder) for source, test in order]
    costs = [_cost_row(model, record, folder) for model in record["models"]]
    notes = differing(record, folder)
    if any(row["busy"] for row in costs):
        notes.append(
            "other processes used the machine while costs were measured; measure them again with `benchmark costs`"
        )
    return Benchmark(record, cells, parts, costs, notes)


def _cell_row(record: Mapping[str, Any], cell: Mapping[str, Any], test: str, folder: Folder) -> Row:
    row = {name: cell[name] for name in ("cell", "source", "model", "seed", "fold")} | {"test": test}
    if not folder.recorded(record, cell["cell"], test):
        return row | {"state": "missing"}
    predictions = read_predictions(folder.predictions(cell["cell"], test)).headline
    metrics = predictions.evaluate()
    return row | {
        "state": "finished",
        "step": predictions.step,
        "images": metrics["n"],
        "groups": metrics["groups"],
        "dataset_version": predictions.dataset_version,
        **metric_values(metrics),
    }


def _part(record: Mapping[str, Any], source: str, test: str, cells: Sequence[Row], folder: Folder) -> Part:
    cells = [row for row in cells if (row["source"], row["test"]) == (source, test)]
    seeds = complete_seeds(record, cells, folder)
    runs = {model: [run for folds in of_seed for run in folds] for model, of_seed in seeds.items() if of_seed}
    if not runs:
        return Part(source, test, [], None, {"refused": "no model has a complete seed"})
    summary = Summary(runs, test)
    missing = sum(row["state"] == "missing" for row in cells)
    ranks = _ranks(summary, missing, len(cells))
    images, groups = len(summary.tables), int(summary.tables.cluster.max()) + 1
    rows = []
    for model, values in summary.rows().items():
        place = ranks.get("models", {}).get(model, {})
        low, high = place.get("rank", (None, None))
        rows.append({
            "source": source, "test": test, "model": model, "learning_rate": record["learning_rates"][model],
            "seeds": len(seeds[model]), "seeds_planned": len(record["seeds"]),
            "complete": len(seeds[model]) == len(record["seeds"]), "images": images, "groups": groups,
            "tier": place.get("tier"), "rank_low": low, "rank_high": high, "rank_refused": ranks.get("refused"),
            **values,
        })  # fmt: skip
    return Part(source, test, rows, summary, ranks)


def complete_seeds(record: Mapping[str, Any], cells: Sequence[Row], folder: Folder) -> dict[str, list[list[Path]]]:
    """Model → for each seed of which every fold is finished, the runs of its folds.

    Args:
        record: the grid.
        cells: rows of cells.parquet with one kind of training shards and one test.
        folder: the benchmark's folder.
    """
    seeds: dict[str, list[list[Path]]] = {model: [] for model in record["models"]}
    for model, of_model in seeds.items():
        for seed in record["seeds"]:
            folds = [row for row in cells if (row["model"], row["seed"]) == (model, seed)]
            if all(row["state"] == "finished" for row in folds):
                of_model.append([folder.run(row["cell"]) for row in folds])
    return seeds


def runs_by_model(folder: Folder, test: str = "test") -> dict[str, list[Path]]:
    """Model → its runs, of the seeds that are complete.

    Args:
        folder: a benchmark with one kind of training shards.
        test: name of the predictions.

    Raises:
        UserError: the folder has no benchmark, it has several kinds of training shards, or no seed is complete.
    """
    record = folder.record()
    if len(record["sources"]) > 1:
        names = ", ".join(source["name"] for source in record["sources"])
        raise UserError(f"{folder.out} has models trained on {names}; give the runs to compare with --group")
    cells = [_cell_row(record, cell, test, folder) for cell in record["cells"]]
    seeds = complete_seeds(record, cells, folder)
    runs = {model: [run for folds in of_seed for run in folds] for model, of_seed in seeds.items() if of_seed}
    if not runs:
        raise UserError(
            f"no model in {folder.out} has a complete seed yet; run `brain-dist benchmark run {folder.out}`"
        )
    return runs


def _ranks(summary: Summary, missing: int, planned: int) -> dict[str, Any]:
    if missing:
        return {"refused": f"{missing} of {planned} cells are missing: ranks would compare incomplete blocks"}
    if len(summary.tables.models) < 2:
        return {"refused": "one model: there is nothing to rank"}
    return summary.ranks()


def _cost_row(model: str, record: Mapping[str, Any], folder: Folder) -> Row:
    """Measured costs of a model, and the median time and rate of its trainings that are complete."""
    file = folder.costs(record, model)
    row: Row = read_costs(file) if file is not None and file.is_file() else {}
    runs = [folder.run(cell["cell"]) for cell in record["cells"] if cell["model"] == model]
    runs = [run for run in runs if any((run / "predictions").glob("*.json"))]
    rates = [each["images_per_s"] for run in runs for each in complete_rows(run / LOG) if each.get("images_per_s")]
    seconds = [training_seconds(run) for run in runs]
    return {
        "model": model,
        **row,
        "busy": row.get("busy"),
        "training_s": statistics.median(seconds) if seconds else None,
        "training_images_per_s": statistics.median(rates) if rates else None,
    }


def training_seconds(run: Path) -> float:
    """Seconds that the steps and evaluations of a training took, without pauses and without steps done again."""
    times = [row["time"] for row in complete_rows(run / LOG) if "time" in row]
    starts = [attempt["time"] for attempt in read(run)]
    total = 0.0
    for before, after in zip([0.0, *times], times, strict=False):
        total += after - max([before, *(start for start in starts if start < after)])
    return total
