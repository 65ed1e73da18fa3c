"""The predictions table: one Parquet row per sample. Metrics and reports read only this table, never the network."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.errors import UserError
from brain_dist.judging.metrics import evaluate_predictions

if TYPE_CHECKING:
    import pyarrow as pa

    from brain_dist.store.dataset import Dataset

SHORTCUTS = "shortcut"  # name of the file of shortcut baselines beside the predictions
_TEXT_COLUMNS = ("key", "dataset", "split", "patient", "group")
_ADVICE = "write it again with `python -m brain_dist.evaluate`"


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
        folds: number of folds of the shards; None if they have none.
        known: str [N] (object array), why training knew an image, "" if it did not, see
            :mod:`brain_dist.inference.known`. None for the shards of the training.
        not_compared: why other shards could not be compared with the training images, or None.
        allow_known: whether images that training knew count in :attr:`headline`.
        adopted: name and checksum of the file that the probabilities came from, see :mod:`brain_dist.judging.adoption`;
            the logits are then their logarithms. None for predictions of a run.
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
    folds: int | None = None
    known: np.ndarray | None = None
    not_compared: str | None = None
    allow_known: bool = False
    adopted: str | None = None

    def __len__(self) -> int:
        return len(self.row)

    @property
    def predicted(self) -> np.ndarray:
        """int64 [N], the class with the largest probability."""
        return self.prob.argmax(axis=1)

    @property
    def is_known(self) -> np.ndarray:
        """bool [N], whether training knew the image."""
        return np.zeros(len(self), dtype=bool) if self.known is None else self.known != ""

    @property
    def headline(self) -> Predictions:
        """The predictions that count: without images that training knew, unless ``allow_known``."""
        if self.allow_known:
            return self
        return self.take(np.flatnonzero(~self.is_known))

    def take(self, positions: np.ndarray) -> Predictions:
        """The predictions at these positions [M], in this order."""
        columns = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, **{name: value[positions] for name, value in columns.items()})

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
    text: dict[str, Any] = {name: dataset.columns[name][rows] for name in _TEXT_COLUMNS}
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
        folds=dataset.folds or None,
        **text,
    )


def reasons_text(known: np.ndarray) -> str:
    """How many images training knew for which reason, such as "280 same pixels, 12 near copy"; ``known`` is [N]."""
    counter = Counter(known[known != ""])
    return ", ".join(f"{count:,} {reason}" for reason, count in counter.most_common())


def predictions_file(folder: Path, name: str) -> Path:
    """The predictions table ``name`` in ``folder``.

    Raises:
        UserError: ``name`` is not a plain file name or is reserved, or ``folder`` is a symbolic link, which could lead
            to any other folder.
    """
    if not re.fullmatch(r"\w[\w.+-]*", name) or name == SHORTCUTS:
        raise UserError(f"--name {name}: must consist of letters, digits and _.+-, and not be {SHORTCUTS}")
    if folder.is_symlink():
        raise UserError(f"{folder} is a symbolic link; remove it, or choose another folder with --out")
    return folder / f"{name}.parquet"


def table_bytes(predictions: Predictions, expected_rows: np.ndarray) -> bytes:
    """A predictions table as the bytes of a Parquet file.

    Args:
        predictions: the table.
        expected_rows: rows of the index [N] that must be in the table, each once.

    Raises:
        ValueError: a row occurs twice, is missing, or is not in ``expected_rows``.
    """
    import pyarrow.parquet as pq

    problem = _row_problem(predictions.row, np.asarray(expected_rows))
    if problem:
        raise ValueError(f"predictions: {problem}")
    buffer = io.BytesIO()
    pq.write_table(_to_table(predictions), buffer)
    return buffer.getvalue()


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
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:  # of damaged bytes
        raise UserError(f"{path} is not a predictions table ({error}); {_ADVICE}") from error
    problem = _row_problem(predictions.row, predictions.row)
    if not problem and not np.array_equal(predicted, predictions.predicted):
        problem = "its predicted class is not the class of the largest probability"
    if problem:
        raise UserError(f"{path}: {problem}; {_ADVICE}")
    return predictions


def read_version(path: Path) -> str:
    """``dataset_version`` of a predictions table, without reading its rows.

    Raises:
        UserError: the file is not a predictions table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return str((pq.read_schema(path).metadata or {})[b"dataset_version"].decode())
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a predictions table ({error}); {_ADVICE}") from error


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
    for name in ("fold", "folds", "not_compared", "adopted"):
        if getattr(predictions, name) is not None:
            metadata[name] = str(getattr(predictions, name))
    if predictions.adopted is not None:
        metadata["logit"] = "log of the probability, at least 1e-12"
    if predictions.known is not None:
        columns["known"] = pa.array([reason or None for reason in predictions.known], pa.string())
        metadata["allow_known"] = json.dumps(predictions.allow_known)
    return pa.table(columns).replace_schema_metadata(metadata)


def _from_table(table: pa.Table) -> Predictions:
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    classes = tuple(json.loads(metadata["classes"]))
    columns = {name: np.array(table[name].to_pylist(), dtype=object) for name in _TEXT_COLUMNS}
    if "known" in table.column_names:
        columns["known"] = np.array([reason or "" for reason in table["known"].to_pylist()], dtype=object)
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
        folds=int(metadata["folds"]) if "folds" in metadata else None,
        not_compared=metadata.get("not_compared"),
        allow_known=json.loads(metadata.get("allow_known", "false")),
        adopted=metadata.get("adopted"),
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
