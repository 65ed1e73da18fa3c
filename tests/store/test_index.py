"""Opening a shard folder and reading single samples; errors name the file and the sample."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from pictures import write_collection

from brain_dist.building.build import build
from brain_dist.collection.recipes import default_recipe
from brain_dist.errors import Fault, UserError
from brain_dist.store.dataset import open_dataset
from brain_dist.store.index import COLUMNS
from brain_dist.store.options import BuildOptions
from brain_dist.store.reader import ShardReader


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = write_collection(tmp_path / "mine", each=5, size=64)
    (source / "patients.csv").unlink()  # the patients are unknown
    options = BuildOptions(shard_size="4")
    build(source, tmp_path / "out", default_recipe(source), options, workers=1, allow_missing=True)
    return tmp_path / "out"


def test_columns_have_the_types_of_the_format(folder):
    dataset = open_dataset(str(folder))
    assert list(dataset.columns) == list(COLUMNS)
    for name, kind in COLUMNS.items():
        assert dataset.columns[name].dtype == (object if kind == "string" else np.dtype(kind))
        assert dataset.columns[name].shape == (20,)
    assert set(dataset.columns["patient"]) == {None}
    assert all(type(value) is str for value in dataset.columns["group"])
    assert dataset.classes == ("glioma", "meningioma", "notumor", "pituitary")
    assert len(dataset) == 20
    assert len(dataset.version) == 64


def test_rows_of_a_split(folder):
    dataset = open_dataset(folder)
    rows = np.concatenate([dataset.rows(split) for split in ("train", "val", "test")])
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(np.sort(rows), np.arange(20))
    with pytest.raises(UserError, match="'dev' is not one of train, val, test"):
        dataset.rows("dev")


def test_reader_gives_the_source_bytes_in_any_order_from_threads_and_after_pickling(folder):
    dataset = open_dataset(folder)
    expected = [(folder.parent / "mine" / name).read_bytes() for name in dataset.columns["source"]]
    reader = ShardReader(dataset)
    order = np.random.default_rng(0).permutation(np.arange(20).repeat(20))
    with ThreadPoolExecutor(8) as pool:
        for row, data in zip(order, pool.map(reader.read, order.tolist()), strict=True):
            assert data == expected[row]
    copy = pickle.loads(pickle.dumps(reader))
    reader.close()
    assert copy.read(3) == expected[3]
    assert reader.read(4) == expected[4]  # the files are opened again


def test_more_shards_than_a_process_may_open(tmp_path):
    source = write_collection(tmp_path / "mine", each=20, size=64)
    build(source, tmp_path / "out", default_recipe(source), BuildOptions(shard_size="1"), workers=1)
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
from brain_dist.store.dataset import open_dataset
from brain_dist.store.reader import ShardReader
dataset = open_dataset(sys.argv[1])
reader = ShardReader(dataset)
with ThreadPoolExecutor(4) as pool:
    print(sum(map(len, pool.map(reader.read, list(range(len(dataset))) * 3))))
"""
    words = ["bash", "-c", 'ulimit -n 40; exec "$@"', "bash", sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    sizes = open_dataset(tmp_path / "out").columns["size"]
    assert len(sizes) == 80
    assert int(done.stdout) == 3 * sizes.sum()


def test_reader_names_shard_sample_and_place(folder):
    dataset = open_dataset(folder)
    row = int(dataset.rows("train")[-1])
    shard, key, offset = (dataset.columns[name][row] for name in ("shard", "key", "offset"))
    data = (folder / shard).read_bytes()
    where = f"{shard}, sample {key} at byte {offset}"

    (folder / shard).write_bytes(data[: offset + 9] + bytes([data[offset + 9] ^ 1]) + data[offset + 10 :])
    with pytest.raises(Fault, match=f"{where}: the bytes are damaged"):
        ShardReader(dataset).read(row)
    (folder / shard).write_bytes(data[: offset + 100])
    with pytest.raises(Fault, match=f"{where}: the shard ends after 100 of"):
        ShardReader(dataset).read(row)
    (folder / shard).unlink()
    with pytest.raises(Fault, match=f"{where}: cannot be read"):
        ShardReader(dataset).read(row)


def test_folders_that_cannot_be_opened(folder, tmp_path):
    manifest = json.loads((folder / "manifest.json").read_text())

    def with_manifest(text: str) -> None:
        (folder / "manifest.json").write_text(text)

    with pytest.raises(UserError, match=r"absent is not a complete shard folder .*shard build"):
        open_dataset(tmp_path / "absent")
    with_manifest("{")
    with pytest.raises(UserError, match="not valid JSON"):
        open_dataset(folder)
    with_manifest("[]")
    with pytest.raises(UserError, match="format version None"):
        open_dataset(folder)
    with_manifest(json.dumps(manifest | {"format": 2}))
    with pytest.raises(UserError, match="format version 2, this program reads 1"):
        open_dataset(folder)
    with_manifest(json.dumps({key: value for key, value in manifest.items() if key != "shards"}))
    with pytest.raises(UserError, match=r"manifest\.json: shards: Field required"):
        open_dataset(folder)
    with_manifest(json.dumps(manifest | {"samples": 21}))
    with pytest.raises(UserError, match=r"has 20 rows, .* says 21"):
        open_dataset(folder)
    with_manifest(json.dumps(manifest))
    index = (folder / "index.parquet").read_bytes()
    (folder / "index.parquet").write_bytes(index[:-1] + b"x")
    with pytest.raises(UserError, match="sha256 differs"):
        open_dataset(folder)
    (folder / "index.parquet").unlink()
    with pytest.raises(UserError, match=r"index\.parquet is missing"):
        open_dataset(folder)
