"""Collect what a run folder holds and write its report: ``report/index.html``, one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.errors import UserError
from brain_dist.judging.predictions import Predictions, read_predictions
from brain_dist.store.dataset import Dataset, open_dataset

if TYPE_CHECKING:
    from brain_dist.inference.run import LoadedRun
    from brain_dist.reporting.page import Example


MISTAKES = 12


PER_GROUP = 2  # mistakes shown of one patient: a dozen slices of one tumour would teach little


def worst_mistakes(predictions: Predictions, most: int = MISTAKES) -> np.ndarray:
    """Positions in the table of the wrong answers given with most confidence, at most two of one group."""
    wrong = np.flatnonzero(predictions.predicted != predictions.label)
    order = wrong[np.argsort(-predictions.prob[wrong].max(axis=1), kind="stable")]
    seen: dict[str, int] = {}
    chosen = []
    for i in order:
        group = str(predictions.group[i])
        seen[group] = seen.get(group, 0) + 1
        if seen[group] <= PER_GROUP:
            chosen.append(i)
    return np.array(chosen[:most], dtype=np.int64)


def typical_hits(predictions: Predictions) -> np.ndarray:
    """For each class the right answer of median confidence (positions in the table): neither the best nor the worst."""
    confidence = predictions.prob.max(axis=1)
    chosen = []
    for c in range(len(predictions.classes)):
        right = np.flatnonzero((predictions.label == c) & (predictions.predicted == c))
        if len(right):
            chosen.append(right[np.argsort(confidence[right], kind="stable")[len(right) // 2]])
    return np.array(chosen, dtype=np.int64)


def make_examples(loaded: LoadedRun, predictions: Predictions, positions: np.ndarray) -> list[Example]:
    """Pictures as the network saw them, and Grad-CAM of the class it named.

    Without a map where :func:`brain_dist.inference.gradcam.target_layer` does not know the network's family.
    """
    from brain_dist.inference.gradcam import gradcam
    from brain_dist.reporting.page import Example

    if len(positions) == 0:
        return []
    rows = predictions.row[positions].tolist()
    images = loaded.images(rows)
    pictures = loaded.display(images)
    heat: Sequence[np.ndarray | None]
    try:
        heat = list(gradcam(loaded.model, images, predictions.predicted[positions].tolist()))
    except UserError:
        heat = [None] * len(rows)
    return [Example(row, shown, warm) for row, shown, warm in zip(rows, pictures, heat, strict=True)]


def build_report(
    run_dir: str | Path, examples: list[Example] | None, name: str = "test", missing: str | None = None
) -> str:
    """The page as HTML, from the files of a run folder.

    Args:
        run_dir: the run's folder; ``predictions/<name>.parquet`` must be there, all else is shown where it is.
        examples: pictures by row of the index, or None.
        name: which predictions.
        missing: why there are no pictures, for the reader.

    Raises:
        UserError: no such predictions, or a file of the run that cannot be read.
    """
    from brain_dist.reporting.page import RunFiles, render

    folder = Path(run_dir)
    predictions = read_predictions(folder / "predictions" / f"{name}.parquet")
    paths = sorted((folder / "predictions").glob("*.parquet"))
    others = {path.stem: read_predictions(path) for path in paths if path.stem != name and path.name[0] != "."}
    dataset, reason = _dataset(predictions)
    files = RunFiles(
        run=folder.resolve().name,
        name=name,
        predictions=predictions,
        others=others,
        log=_log(folder / "metrics.jsonl"),
        config=_text(folder / "config.yaml"),
        environment=_json(folder / "environment.json"),
        shortcut=_json(folder / "predictions" / "shortcut.json"),
        dataset=dataset,
        dataset_missing=reason,
    )
    return render(
        files,
        mistakes=worst_mistakes(predictions),
        hits=typical_hits(predictions),
        examples={example.row: example for example in examples or []},
        pictures_missing=missing,
    )


def _dataset(predictions: Predictions) -> tuple[Dataset | None, str]:
    """The shards that the predictions were made on, or None and why not."""
    try:
        dataset = open_dataset(predictions.shards)
    except UserError:
        return None, f"the shard folder {predictions.shards} is no longer there"
    if dataset.version != predictions.dataset_version:
        return None, f"the shard folder {predictions.shards} now holds another version of the data"
    return dataset.of_fold(predictions.fold), ""


def _text(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def _json(path: Path) -> dict[str, Any] | None:
    text = _text(path)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); make it again or delete it") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; make it again or delete it")
    return value


def _log(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; a last line cut short by a killed process is left out."""
    rows = []
    lines = (_text(path) or "").splitlines()
    for i, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if i < len(lines):
                raise UserError(f"{path}, line {i} is not JSON; delete that line") from None
    return rows
