"""The predictions table: one Parquet row per sample. Metrics and reports read only this table, never the network."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.common.files import write_atomically
from brain_dist.errors import UserError
from brain_dist.judging.metrics import evaluate_predictions

if TYPE_CHECKING:
    import pyarrow as pa

    from brain_dist.store.dataset import Dataset

_TEXT_COLUMNS = ("key", "dataset", "split", "patient", "group")


@dataclass(frozen=True)
class Predictions:
    """The predictions of one split.

    Attributes:
        row: int64 [N], rows of the index.
        key, dataset, split, patient, group: str [N] (object arrays), from the index; ``patient`` is None if unknown.
        label: int64 [N], true classes.
        prob: float32 [N, K], probabilities.
        logit: float32 [N, K].
        classes: names of the K classes.
        run: name of the run.
        step: optimiser steps of the checkpoint.
        dataset_version: sha256 of the shards' manifest.
        shards: path or URL of the shard folder.
        fold: the fold that was the test split; None if the shards have no folds.
    """

    row: np.ndarray
    key: np.ndarray
    dataset: np.ndarray
    split: np.ndarray
    patient: np.ndarray
    group: np.ndarray
    label: np.ndarray
    prob: np.ndarray
    logit: np.ndarray
    classes: tuple[str, ...]
    run: str
    step: int
    dataset_version: str
    shards: str
    fold: int | None = None

    def __len__(self) -> int:
        return len(self.row)

    @property
    def predicted(self) -> np.ndarray:
        """int64 [N], the class with the largest probability."""
        return self.prob.argmax(axis=1)

    def evaluate(self, mask: np.ndarray | None = None) -> dict[str, Any]:
        """:func:`evaluate_predictions` of all samples, or of those selected by ``mask`` (bool [N])."""
        mask = np.ones(len(self), dtype=bool) if mask is None else mask
        return evaluate_predictions(self.label[mask], self.prob[mask], self.classes, self.group[mask])


def predictions_from_logits(
    dataset: Dataset, rows: np.ndarray, logits: np.ndarray, *, run: str, step: int
) -> Predictions:
    """Join logits with the columns of the index, sorted by row, so that the table is the same for every world size.

    Args:
        dataset: the shards.
        rows: rows of the index [N].
        logits: [N, K]; the probabilities are their softmax, computed in float64.
        run: name of the run.
        step: optimiser steps of the checkpoint.
    """
    from scipy.special import softmax

    order = np.argsort(rows, kind="stable")
    rows, logits = np.asarray(rows, dtype=np.int64)[order], np.asarray(logits, dtype=np.float32)[order]
    return Predictions(
        row=rows,
        label=dataset.columns["label"][rows].astype(np.int64),
        prob=softmax(logits.astype(np.float64), axis=1).astype(np.float32),
        logit=logits,
        classes=dataset.classes,
        run=run,
        step=step,
        dataset_version=dataset.version,
        shards=dataset.origin or str(dataset.root.resolve()),
        fold=dataset.fold,
        **{name: dataset.columns[name][rows] for name in _TEXT_COLUMNS},
    )


def write_predictions(path: str | Path, predictions: Predictions, expected_rows: np.ndarray) -> None:
    """Write a predictions table as Parquet, atomically.

    Args:
        path: the file to write; its folder is created.
        predictions: the table.
        expected_rows: rows of the index [N] that must be in the table, each once.

    Raises:
        ValueError: a row occurs twice, is missing, or is not in ``expected_rows``.
    """
    import pyarrow.parquet as pq

    problem = _row_problem(predictions.row, np.asarray(expected_rows))
    if problem:
        raise ValueError(f"predictions for {path}: {problem}")
    buffer = io.BytesIO()
    pq.write_table(_to_table(predictions), buffer)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def read_predictions(path: str | Path) -> Predictions:
    """Read a predictions table.

    Raises:
        UserError: the file is missing or not a predictions table, a row occurs twice, or it was edited by hand.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; write it with `python -m brain_dist.evaluate`")
    try:
        # without threads, as in store/index.py
        table = pq.ParquetFile(path, pre_buffer=False).read(use_threads=False)
        predictions = _from_table(table)
        predicted = table["predicted"].to_numpy()
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is not a predictions table ({error}); write it again with `python -m brain_dist.evaluate`"
        ) from error
    problem = _row_problem(predictions.row, predictions.row)
    if not problem and not np.array_equal(predicted, predictions.predicted):
        problem = "its predicted class is not the class of the largest probability"
    if problem:
        raise UserError(f"{path}: {problem}; write it again with `python -m brain_dist.evaluate`")
    return predictions


def _to_table(predictions: Predictions) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, Any] = {"row": pa.array(predictions.row, pa.int64())}
    columns |= {name: pa.array(getattr(predictions, name).tolist(), pa.string()) for name in _TEXT_COLUMNS}
    columns |= {name: pa.array(getattr(predictions, name), pa.int16()) for name in ("label", "predicted")}
    for kind in ("prob", "logit"):
        values = getattr(predictions, kind)
        columns |= {f"{kind}_{name}": pa.array(values[:, c]) for c, name in enumerate(predictions.classes)}
    metadata = {name: str(getattr(predictions, name)) for name in ("run", "step", "dataset_version", "shards")}
    metadata["classes"] = json.dumps(predictions.classes)
    if predictions.fold is not None:
        metadata["fold"] = str(predictions.fold)
    return pa.table(columns).replace_schema_metadata(metadata)


def _from_table(table: pa.Table) -> Predictions:
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    classes = tuple(json.loads(metadata["classes"]))
    columns = {name: np.array(table[name].to_pylist(), dtype=object) for name in _TEXT_COLUMNS}
    for kind in ("prob", "logit"):
        values = [table[f"{kind}_{name}"].to_numpy() for name in classes]
        columns[kind] = np.stack(values, axis=1).astype(np.float32)
    return Predictions(
        row=table["row"].to_numpy(),
        label=table["label"].to_numpy().astype(np.int64),
        classes=classes,
        run=metadata["run"],
        step=int(metadata["step"]),
        dataset_version=metadata["dataset_version"],
        shards=metadata["shards"],
        fold=int(metadata["fold"]) if "fold" in metadata else None,
        **columns,
    )


def _row_problem(rows: np.ndarray, expected: np.ndarray) -> str | None:
    """Why the rows of a table are not exactly the expected rows, or None."""
    unique, count = np.unique(rows, return_counts=True)
    problems = {
        "appear more than once": unique[count > 1],
        "are missing": np.setdiff1d(expected, unique),
        "are unexpected": np.setdiff1d(unique, expected),
    }
    return next((f"{len(some)} rows {what}, first {some[0]}" for what, some in problems.items() if len(some)), None)
