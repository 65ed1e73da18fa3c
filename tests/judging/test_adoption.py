"""Predictions of a scikit-learn model, adopted from files, and every way in which a file can be wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign import classifier_probabilities
from helpers import in_process
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss

from brain_dist.judging.predictions import read_predictions
from brain_dist.store.dataset import Dataset, open_dataset


@pytest.fixture(scope="module")
def dataset(phantom_shards: Path) -> Dataset:
    return open_dataset(phantom_shards)


@pytest.fixture(scope="module")
def probabilities(dataset: Dataset) -> np.ndarray:
    """[rows of the index, K] from logistic regression on thumbnails."""
    return classifier_probabilities(dataset)


def rows_of(dataset: Dataset, probabilities: np.ndarray, split: str) -> list[list[str]]:
    """Lines of a CSV file: key and probabilities with six decimals."""
    return [
        [dataset.columns["key"][row], *(f"{value:.6f}" for value in probabilities[row])] for row in dataset.rows(split)
    ]


def write(path: Path, names: list[str], rows: list[list[str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([names, *rows])
    return path


def test_an_adopted_table_is_judged_like_ours(dataset: Dataset, probabilities: np.ndarray, tmp_path: Path) -> None:
    rows = rows_of(dataset, probabilities, "test")[::-1] + rows_of(dataset, probabilities, "val")
    file = write(tmp_path / "theirs.csv", ["key", *(f"prob_{name}" for name in dataset.classes)], rows)
    run = tmp_path / "runs" / "theirs"
    result = in_process("adopt", str(file), "--shards", str(dataset.root), "--run", str(run))
    assert f"left out: {len(dataset.rows('val'))} rows about other splits" in result.out
    table = read_predictions(run / "predictions" / "test.parquet")
    expected = dataset.rows("test")
    assert table.row.tolist() == expected.tolist()
    label = dataset.columns["label"][expected]
    np.testing.assert_allclose(table.prob, probabilities[expected], atol=2e-6)
    np.testing.assert_allclose(softmax(table.logit.astype(float), axis=1), table.prob, atol=1e-6)
    assert (table.run, table.step, table.dataset_version) == ("theirs", 0, dataset.version)
    assert (table.adopted or "").startswith("theirs.csv, sha256 ")
    metadata = pq.read_schema(run / "predictions" / "test.parquet").metadata
    assert metadata[b"logit"] == b"log of the probability, at least 1e-12"
    metrics = json.loads((run / "predictions" / "test.json").read_text())
    assert metrics["accuracy"] == accuracy_score(label, probabilities[expected].argmax(axis=1))
    assert metrics["nll"] == pytest.approx(log_loss(label, probabilities[expected]), abs=1e-4)
    in_process("report", str(run))
    page = (run / "report" / "index.html").read_text()
    assert "Training images not known." in page
    assert "predictions adopted from theirs.csv" in page
    assert "optimiser steps" not in page


def test_files_of_other_shapes(dataset: Dataset, probabilities: np.ndarray, tmp_path: Path) -> None:
    """Parquet with other names, semicolons, and images named by their source file: all give the same table."""
    expected = None
    rows = rows_of(dataset, probabilities, "val")
    columns = [list(column) for column in zip(*rows, strict=True)]
    names = ["image", *(f"p{c}" for c in range(len(dataset.classes)))]
    values = [pa.array(columns[0]), *(pa.array([float(value) for value in column]) for column in columns[1:])]
    pq.write_table(pa.table(dict(zip(names, values, strict=True))), tmp_path / "a.parquet")
    write(tmp_path / "b.csv", ["key", *dataset.classes], rows, delimiter=";")
    sources = [
        [source, *row[1:]] for source, row in zip(dataset.columns["source"][dataset.rows("val")], rows, strict=True)
    ]
    write(tmp_path / "c.csv", ["source", *dataset.classes], sources)
    for name, options in (("a.parquet", ["--columns", ",".join(names)]), ("b.csv", []), ("c.csv", [])):
        run = tmp_path / name.replace(".", "-")
        shards = ["--shards", str(dataset.root), "--split", "val", "--run", str(run)]
        in_process("adopt", str(tmp_path / name), *shards, *options)
        table = read_predictions(run / "predictions" / "val.parquet")
        expected = table.prob if expected is None else expected
        np.testing.assert_array_equal(table.prob, expected)


def test_bad_rows_are_listed_and_nothing_is_written(
    dataset: Dataset, probabilities: np.ndarray, tmp_path: Path
) -> None:
    rows = rows_of(dataset, probabilities, "test")
    keys = [row[0] for row in rows]
    rows[0][0] = "not-an-image"
    rows[1] = rows[2]
    rows[3][1:] = ["0.5", "0.5", "0.0003", "0"]
    rows[4][1:] = ["0.4", "nan", "0.3", "0.3"]
    rows[5][1:] = ["1.2", "-0.2", "0", "0"]
    rows[6][1:] = ["0.5", "half", "0", "0"]
    rows[7][1:] = ["0.50005", "0.5", "0", "0"]  # within the tolerance
    rows[8][1:] = ["0.1112", "0.1112", "0.1112", "0.6666"]  # the sum of four rounded decimals may miss 1 by 0.0002
    file = write(tmp_path / "bad.csv", ["key", *dataset.classes], rows)
    run = tmp_path / "run"
    result = in_process("adopt", str(file), "--shards", str(dataset.root), "--run", str(run), expect=2)
    lines = result.err.splitlines()
    assert lines[:-1] == [
        f"line 2: no image of {dataset.root} has the key 'not-an-image'",
        f"line 3: {keys[2]} occurs 2 times",
        f"line 4: {keys[2]} occurs 2 times",
        "line 5: the probabilities sum to 1.0003",
        "line 6: 0.4, nan, 0.3, 0.3 are not all numbers from 0 to 1",
        "line 7: 1.2, -0.2, 0, 0 are not all numbers from 0 to 1",
        "line 8: 0.5, half, 0, 0 are not all numbers from 0 to 1",
        *(f"missing: {key}" for key in keys[:2]),
    ]
    assert "9 rows are wrong or missing" in lines[-1]
    assert "nothing was written" in lines[-1]
    assert lines[-1].endswith("probabilities that sum to 1 ± 0.0002")
    assert not run.exists()


def test_refusals(dataset: Dataset, probabilities: np.ndarray, tmp_path: Path) -> None:
    rows = rows_of(dataset, probabilities, "test")
    good = write(tmp_path / "good.csv", ["key", *dataset.classes], rows)

    def error(file: Path, *options: str) -> str:
        run = ["--run", str(tmp_path / "run")]
        result = in_process("adopt", str(file), "--shards", str(dataset.root), *run, *options, expect=2)
        assert len(result.err.splitlines()) == 1
        return result.err

    assert "cannot be read" in error(tmp_path / "absent.csv")
    assert "has no column key or source; it has image" in error(write(tmp_path / "a.csv", ["image"], []))
    assert "has no column prob_glioma or glioma" in error(write(tmp_path / "b.csv", ["key", "x"], [["a", "1"]]))
    assert "--columns has 2 names; it needs 5" in error(good, "--columns", "key,p")
    assert "has two columns key" in error(write(tmp_path / "c.csv", ["key", "key"], []))
    assert "line 2 has 1 values, the header has 2" in error(write(tmp_path / "d.csv", ["key", "x"], [["a"]]))
    (tmp_path / "e.parquet").write_bytes(b"PAR1")
    assert "cannot be read" in error(tmp_path / "e.parquet")
    (tmp_path / "f.csv").write_bytes(b"key\xff\xfe")
    assert "cannot be read" in error(tmp_path / "f.csv")
    assert "choose another --name" in error(good, "--name", "val")
    assert "was built without folds" in error(good, "--fold", "1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    assert "is the folder of a training" in error(good)
