"""Adopt the predictions of any model: a file of keys and probabilities becomes a predictions table."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist.errors import UserError
from brain_dist.judging.predictions import Predictions, predictions_from_logits
from brain_dist.store.dataset import Dataset

ROUNDING = 0.5e-4  # how much a probability of four decimals may be off; so many times the classes for their sum
LOG_FLOOR = 1e-12  # probabilities below it get its logarithm as their logit


class BadRows(UserError):
    """Rows of a file of predictions cannot be used.

    Attributes:
        rows: one line for each of them.
    """

    def __init__(self, message: str, rows: list[str]) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True)
class ForeignFile:
    """The columns of a file of predictions that are used.

    Attributes:
        path: the file.
        name: of the column that says which image a row is about.
        keys: str [N], that column.
        places: str [N], what to call each row in messages, such as "line 2".
        values: for each of K classes its column [N], numbers or text.
    """

    path: Path
    name: str
    keys: list[str]
    places: list[str]
    values: list[list[Any]]


def read_foreign_file(path: Path, classes: tuple[str, ...], columns: list[str] | None = None) -> ForeignFile:
    """Read a CSV file (with a header; separated by commas, semicolons or tabs) or a Parquet file.

    Args:
        path: the file; a name that ends with .parquet is a Parquet file.
        classes: names of the K classes, in the order of the shards.
        columns: names of the column of keys and of the K columns of probabilities, in the order of ``classes``; None
            takes ``key`` or ``source``, and ``prob_CLASS`` or ``CLASS`` for each class.

    Raises:
        UserError: the file cannot be read, or a column is missing.
    """
    if columns is not None and len(columns) != 1 + len(classes):
        raise UserError(
            f"--columns has {len(columns)} names; it needs {1 + len(classes)}: the column of keys, then one for each of"
            f" {', '.join(classes)}, in this order"
        )
    table, places = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    wanted = (
        [(name,) for name in columns] if columns else [("key", "source"), *((f"prob_{name}", name) for name in classes)]
    )
    chosen = [next((name for name in names if name in table), None) for names in wanted]
    for name, names in zip(chosen, wanted, strict=True):
        if name is None:
            raise UserError(
                f"{path} has no column {' or '.join(names)}; it has {', '.join(table)}: name the columns of the key and"
                f" of {', '.join(classes)} with --columns"
            )
    key, *probabilities = (str(name) for name in chosen)
    keys = ["" if value is None else str(value) for value in table[key]]
    return ForeignFile(path, key, keys, places, [table[name] for name in probabilities])


def _read_csv(path: Path) -> tuple[dict[str, list[Any]], list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            delimiter = max(",;\t", key=header.count)
            names = next(csv.reader([header], delimiter=delimiter), [])
            reader = csv.reader(file, delimiter=delimiter)
            rows, places = [], []
            for row in reader:
                if row:
                    rows.append(row)
                    places.append(f"line {reader.line_num + 1}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); give a CSV or a Parquet file") from None
    repeated = [name for name, number in Counter(names).items() if number > 1]
    if repeated:
        raise UserError(f"{path} has two columns {repeated[0]}; rename one")
    for row, place in zip(rows, places, strict=True):
        if len(row) != len(names):
            raise UserError(f"{path}, {place} has {len(row)} values, the header has {len(names)}")
    return {name: [row[column] for row in rows] for column, name in enumerate(names)}, places


def _read_parquet(path: Path) -> tuple[dict[str, list[Any]], list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path, pre_buffer=False).read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({error}); give a CSV or a Parquet file") from None
    return table.to_pydict(), [f"row {number}" for number in range(1, len(table) + 1)]


def adopt(file: ForeignFile, dataset: Dataset, split: str, run: str, origin: str) -> tuple[Predictions, int]:
    """The predictions table of a split from a file of keys and probabilities.

    A key is the key of an image in the index. If no value of the column is one, the values are looked up among the
    ``source`` files of the index. Each row of probabilities is divided by its sum; the logits are their logarithms.

    Args:
        file: the file's columns.
        dataset: the shards, with the fold selected if they have folds.
        split: train, val or test.
        run: name for the run.
        origin: the file's name and checksum, kept in the table.

    Returns:
        The table, and the number of rows of the file that are about other splits, which are left out.

    Raises:
        BadRows: an image of the split is missing or occurs twice, a key is unknown, or probabilities are not numbers
            in 0..1 that sum to 1 within :data:`ROUNDING` for each class.
        UserError: the split has no images.
    """
    rows = dataset.rows(split)
    if not len(rows):
        raise UserError(f"{dataset.root} has no images in split {split}; choose another --split")
    names = _names(dataset, file)
    row_of = {name: row for row, name in enumerate(names)}
    count = Counter(file.keys)
    prob, problems = _probabilities(file.values)
    for number, key in enumerate(file.keys):
        if key not in row_of:
            problems[number] = f"no image of {dataset.root} has the {file.name} {key!r}"
        elif count[key] > 1:
            problems[number] = f"{key} occurs {count[key]} times"
    in_split = np.array([dataset.columns["split"][row_of[key]] == split for key in file.keys if key in row_of])
    bad = [
        f"{file.places[number]}: {problem}"
        for number, problem in sorted(problems.items())
        if file.keys[number] not in row_of or dataset.columns["split"][row_of[file.keys[number]]] == split
    ]
    bad += [f"missing: {names[row]}" for row in rows if names[row] not in count]
    if bad:
        raise BadRows(
            f"{file.path}: {len(bad)} rows are wrong or missing, listed above; nothing was written: the file needs each"
            f" of the {len(rows):,} images of split {split} once, with probabilities that sum to 1 ±"
            f" {ROUNDING * len(file.values):g}",
            bad,
        )
    position = {key: number for number, key in enumerate(file.keys)}
    prob = prob[[position[names[row]] for row in rows]]
    prob /= prob.sum(axis=1, keepdims=True)
    predictions = predictions_from_logits(dataset, rows, np.log(np.maximum(prob, LOG_FLOOR)), run=run, step=0)
    return replace(predictions, adopted=origin), int((~in_split).sum())


def _names(dataset: Dataset, file: ForeignFile) -> np.ndarray:
    """The column of the index that a file's keys are in, ``key`` or else ``source`` [rows of the index]."""
    keys, sources = dataset.columns["key"], dataset.columns["source"]
    if set(keys) & set(file.keys) or not set(sources) & set(file.keys):
        return keys
    if len(set(sources)) < len(sources):
        raise UserError(f"{dataset.root} has several images of one source file; name the images by their key instead")
    return sources


def _probabilities(columns: list[list[Any]]) -> tuple[np.ndarray, dict[int, str]]:
    """Probabilities float64 [N, K] (NaN where they are not numbers), and the problem of each bad row."""

    def as_number(value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError):
            return np.nan

    prob = np.array([[as_number(value) for value in column] for column in columns], dtype=np.float64).T
    problems, tolerance = {}, ROUNDING * len(columns) + 1e-9  # what adding up in binary may add
    for number in np.flatnonzero(~(np.abs(prob.sum(axis=1) - 1) <= tolerance)):
        problems[int(number)] = f"the probabilities sum to {prob[number].sum():.6g}"
    for number in np.flatnonzero(~((prob >= 0) & (prob <= 1 + tolerance)).all(axis=1)):
        values = ", ".join(str(column[number]) for column in columns)
        problems[int(number)] = f"{values} are not all numbers from 0 to 1"
    return prob, problems
