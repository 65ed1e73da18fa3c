"""The predictions table: one Parquet row a sample, the only thing that passes from running a model to judging it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.errors import UserError
from brain_dist.judging.metrics import evaluate_predictions

if TYPE_CHECKING:
    from brain_dist.store.dataset import Dataset

_TEXT_COLUMNS = ("key", "dataset", "split", "patient", "group")


@dataclass(frozen=True)
class Predictions:
    """One split's predictions.

    ``row``, ``label``, ``predicted`` int64 [N]; ``prob``, ``logit`` float32 [N, K]; ``key``, ``dataset``, ``split``,
    ``patient`` (``None`` where unknown), ``group`` object [N]. ``shards`` is the shard folder's path, ``fold`` the fold
    that was the test part where the shards have folds.
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
        return self.prob.argmax(axis=1)

    def evaluate(self, where: np.ndarray | None = None) -> dict[str, Any]:
        """:func:`evaluate_predictions` of all samples, or of those where the mask ``where`` [N] is true."""
        where = np.ones(len(self), dtype=bool) if where is None else where
        return evaluate_predictions(self.label[where], self.prob[where], self.classes, self.group[where])


def predictions_from_logits(
    dataset: Dataset, rows: np.ndarray, logits: np.ndarray, *, run: str, step: int
) -> Predictions:
    """Join logits [N, K] of index rows [N] with what the index knows of them, in row order (the order is the same
    for every world size, so the file is too). Probabilities are the softmax, taken in float64."""
    from scipy.special import softmax

    order = np.argsort(rows, kind="stable")
    rows, logits = np.asarray(rows, dtype=np.int64)[order], np.asarray(logits, dtype=np.float32)[order]
    text = {name: dataset.columns[name][rows] for name in _TEXT_COLUMNS}
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
        **text,
    )


def write_predictions(path: str | Path, predictions: Predictions, expected_rows: np.ndarray) -> None:
    """Write ``predictions`` as Parquet, all or nothing (temporary file, then rename).

    Raises:
        ValueError: a row appears twice, one of ``expected_rows`` is missing, or one was not expected.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    problem = _coverage(predictions.row, np.asarray(expected_rows))
    if problem:
        raise ValueError(f"predictions for {path}: {problem}")
    columns: dict[str, Any] = {"row": pa.array(predictions.row, pa.int64())}
    for name in _TEXT_COLUMNS:
        columns[name] = pa.array(getattr(predictions, name).tolist(), pa.string())
    columns["label"] = pa.array(predictions.label, pa.int16())
    columns["predicted"] = pa.array(predictions.predicted, pa.int16())
    for kind in ("prob", "logit"):
        for c, name in enumerate(predictions.classes):
            columns[f"{kind}_{name}"] = pa.array(getattr(predictions, kind)[:, c], pa.float32())
    metadata = {
        "run": predictions.run,
        "step": str(predictions.step),
        "dataset_version": predictions.dataset_version,
        "classes": json.dumps(list(predictions.classes)),
        "shards": predictions.shards,
    } | ({} if predictions.fold is None else {"fold": str(predictions.fold)})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_predictions(path: str | Path) -> Predictions:
    """Read a predictions table. UserError: absent, not such a table, a row twice, or edited by hand."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not there: make it with `python -m brain_dist.evaluate`")
    try:
        table = pq.ParquetFile(path, pre_buffer=False).read(use_threads=False)  # as in data.index: no threads
        meta = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        classes = tuple(json.loads(meta["classes"]))
        matrix = {
            kind: np.stack([table[f"{kind}_{name}"].to_numpy() for name in classes], axis=1).astype(np.float32)
            for kind in ("prob", "logit")
        }
        text = {name: np.array(table[name].to_pylist(), dtype=object) for name in _TEXT_COLUMNS}
        predictions = Predictions(
            row=table["row"].to_numpy(),
            label=table["label"].to_numpy().astype(np.int64),
            classes=classes,
            run=meta["run"],
            step=int(meta["step"]),
            dataset_version=meta["dataset_version"],
            shards=meta["shards"],
            fold=int(meta["fold"]) if "fold" in meta else None,
            **text,
            **matrix,
        )
        stored = table["predicted"].to_numpy()
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a predictions table of brain_dist ({error}): make it again") from error
    problem = _coverage(predictions.row, predictions.row)
    if problem or not np.array_equal(stored, predictions.predicted):
        raise UserError(f"{path}: {problem or 'its predicted class is not its largest probability'}; make it again")
    return predictions


def _coverage(rows: np.ndarray, expected: np.ndarray) -> str | None:
    """What is wrong with the rows of a table, or None."""
    unique, count = np.unique(rows, return_counts=True)
    if (count > 1).any():
        return f"{np.count_nonzero(count > 1)} rows appear more than once, first {unique[count > 1][0]}"
    for what, found in (("missing", np.setdiff1d(expected, unique)), ("unexpected", np.setdiff1d(unique, expected))):
        if len(found):
            return f"{len(found)} rows are {what}, first {found[0]}"
    return None
