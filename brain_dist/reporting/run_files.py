"""Read the files of a run folder that its report shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brain_dist.calibration.record import Calibration, read_calibration
from brain_dist.common.records import Kind, read_record
from brain_dist.config import read_sections
from brain_dist.errors import UserError
from brain_dist.explaining.record import read_summary
from brain_dist.judging.predictions import SHORTCUTS, Predictions, read_predictions
from brain_dist.store.dataset import Dataset, open_dataset

SHORTCUT: dict[str, Kind] = {
    "dataset_version": str,
    "fold": (int, type(None)),
    "test": int,
    "baselines": dict,
}  # keys of shortcut.json


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run folder.

    Attributes:
        run: name of the run.
        name: name of the predictions that the report is about.
        predictions: the headline of these predictions, which the page is about.
        table: all of these predictions.
        others: the headlines of the run's other predictions, by name.
        log: rows of metrics.jsonl; empty if there is no log.
        config: text of config.yaml, or None.
        settings: the settings in it by section, or None.
        environment: content of environment.json, or None.
        shortcut: content of predictions/shortcut.json, or None.
        calibration: content of calibration.json, or None.
        explanations: what ``brain-dist explain`` measured on these predictions, or None.
        dataset: the shards of the predictions, or None if they are not available.
        dataset_missing: why ``dataset`` is None.
    """

    run: str
    name: str
    predictions: Predictions
    table: Predictions
    others: dict[str, Predictions]
    log: list[dict[str, Any]]
    config: str | None
    settings: dict[str, dict[str, Any]] | None
    environment: dict[str, Any] | None
    shortcut: dict[str, Any] | None
    calibration: Calibration | None
    explanations: dict[str, Any] | None
    dataset: Dataset | None
    dataset_missing: str


def read_run_files(folder: Path, name: str, predictions: Path | None = None) -> RunFiles:
    """Read a run folder. Only the predictions ``<name>.parquet`` are required.

    Args:
        folder: the run's folder.
        name: name of the predictions.
        predictions: folder of the predictions; None is ``predictions`` in the run's folder.

    Raises:
        UserError: the predictions do not exist, or a file cannot be read.
    """
    predictions = predictions or folder / "predictions"
    table = read_predictions(predictions / f"{name}.parquet")
    others = [path for path in sorted(predictions.glob("*.parquet")) if path.stem != name and path.name[0] != "."]
    dataset, missing = _open_dataset(table)
    return RunFiles(
        run=folder.resolve().name,
        name=name,
        predictions=table.headline,
        table=table,
        others={path.stem: read_predictions(path).headline for path in others},
        log=_read_log(folder / "metrics.jsonl"),
        settings=_read_settings(folder / "config.yaml"),  # first, as it checks the file
        config=_read_text(folder / "config.yaml"),
        environment=_read_json(folder / "environment.json"),
        shortcut=_read_json(predictions / f"{SHORTCUTS}.json", SHORTCUT),
        calibration=read_calibration(folder),
        explanations=_read_explanations(folder, name, table),
        dataset=dataset,
        dataset_missing=missing,
    )


def _read_explanations(folder: Path, name: str, table: Predictions) -> dict[str, Any] | None:
    """The measured explanations, if they are about the same checkpoint and the same shards."""
    summary = read_summary(folder, name)
    if summary is None or (summary["step"], summary["dataset_version"]) != (table.step, table.dataset_version):
        return None
    return summary


def _open_dataset(predictions: Predictions) -> tuple[Dataset | None, str]:
    """The shards of the predictions, or None and the reason."""
    try:
        dataset = open_dataset(predictions.shards)
    except UserError:
        return None, f"the shard folder {predictions.shards} no longer exists"
    if dataset.version != predictions.dataset_version:
        return None, f"the shard folder {predictions.shards} now contains another version of the data"
    return dataset.of_fold(predictions.fold), ""


def _read_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _read_settings(path: Path) -> dict[str, dict[str, Any]] | None:
    return read_sections(path, "copy it from where the run was trained, or delete it") if path.is_file() else None


def _read_json(path: Path, keys: Mapping[str, Kind] | None = None) -> dict[str, Any] | None:
    return read_record(path, "write it again or delete it", keys) if path.is_file() else None


def _read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, without a last line that a killed process left incomplete."""
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            if number < len(lines):
                raise UserError(f"{path}, line {number} is not JSON; delete that line") from None
            continue
        if not isinstance(row, dict) or "kind" not in row:
            raise UserError(f"{path}, line {number} is not a row of a training's log; delete that line")
        rows.append(row)
    return rows
