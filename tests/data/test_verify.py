"""Verify finds each kind of damage and names it."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import write_collection

from brain_dist.data.build import Options, build
from brain_dist.data.index import arrow_schema, open_dataset
from brain_dist.data.recipes import parse_recipe
from brain_dist.data.verify import verify
from brain_dist.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("verify")
    source = write_collection(base / "mine", each=6, size=64)
    part = {"patients": {"file": "patients.csv", "id": "id", "patient": "patient"}}
    options = Options(shard_size="6", fractions=(0.5, 0.25, 0.25))
    build(source, base / "out", parse_recipe({"parts": [part]}, "it"), options, workers=1, progress=lambda *stage: None)
    return base / "out"


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def edit_index(folder: Path, change, *, hide: bool = False) -> None:
    """Change the index's rows; with ``hide`` the manifest is made to agree, as one who tampers would."""
    rows = pq.read_table(folder / "index.parquet").to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema()), folder / "index.parquet")
    if hide:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["index_sha256"] = hashlib.sha256((folder / "index.parquet").read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))


def rewrite(shard: Path, change) -> None:
    """Write a shard anew with its members changed."""
    with tarfile.open(shard) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar]
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in change(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def shard_of(folder: Path) -> Path:
    return folder / "mine-train-00000.tar"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_as_built_is_well(whole, workers):
    assert verify(whole, workers=workers) == []


def test_flipped_byte_names_the_sample(folder):
    dataset = open_dataset(folder)
    row = int(dataset.rows("train")[2])
    shard = folder / dataset.columns["shard"][row]
    data = bytearray(shard.read_bytes())
    data[dataset.columns["offset"][row] + 50] ^= 0xFF
    shard.write_bytes(data)
    assert verify(folder) == [
        f"{shard.name}: the bytes are not what was built (sha256 differs)",
        f"{shard.name}: sample {dataset.columns['key'][row]}: the image's bytes are damaged (crc32 differs)",
    ]


def test_truncated_shard(folder):
    shard = shard_of(folder)
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2 - 100])
    problems = verify(folder)
    assert all(problem.startswith(shard.name) or problem.startswith(shard.stem) for problem in problems)
    assert f"{len(whole) // 2 - 100} bytes, the manifest says {len(whole)}" in problems[0]
    assert any("not a complete tar" in problem or "members" in problem for problem in problems)


def test_missing_and_extra_files(folder):
    shard_of(folder).unlink()
    (folder / "mine-val-00000.idx").unlink()
    shutil.copy(folder / "mine-test-00000.tar", folder / "mine-test-00009.tar")
    assert verify(folder) == [
        "mine-train-00000.tar: missing", "mine-val-00000.idx: missing", "mine-test-00009.tar: not in the manifest"
    ]  # fmt: skip


def test_edited_index_is_named_even_if_its_checksum_was_mended(folder):
    def relabel(rows):
        rows[0]["label"] = (rows[0]["label"] + 1) % 4
        rows[1]["offset"] += 512

    edit_index(folder, relabel, hide=True)
    dataset = open_dataset(folder)
    keys = dataset.columns["key"]
    text = "\n".join(verify(folder))
    assert f"sample {keys[0]}: .cls says" in text
    assert f"sample {keys[0]}: .json and the index differ in class" in text
    assert f"sample {keys[1]}: " in text
    assert "rows in test, the manifest says" in text


def test_edited_index_is_named_by_its_checksum(folder):
    edit_index(folder, lambda rows: rows[0].update(phash="0" * 16))
    assert verify(folder) == ["index.parquet: not the index the manifest describes (sha256 differs)"]


def test_group_that_crosses_a_split(folder):
    def join(rows):
        splits = {row["split"]: row for row in rows}
        splits["test"]["group"] = splits["train"]["group"]

    edit_index(folder, join, hide=True)
    group = next(row["group"] for row in pq.read_table(folder / "index.parquet").to_pylist() if row["split"] == "train")
    problems = verify(folder)
    assert any(problem.endswith("is in more than one split") for problem in problems), group


def test_rows_left_out_and_doubled(folder):
    edit_index(folder, lambda rows: rows.__setitem__(1, rows[0]), hide=True)
    text = "\n".join(verify(folder))
    assert "occurs more than once" in text
    edit_index(folder, lambda rows: rows.pop(), hide=True)
    assert "23 rows, the manifest says 24" in "\n".join(verify(folder))


def test_members_that_were_exchanged_or_edited(folder):
    shard = shard_of(folder)

    def swap(members):
        return [*members[3:6], *members[:3], *members[6:]]

    rewrite(shard, swap)
    text = "\n".join(verify(folder))
    assert "its place holds" in text
    assert f"{shard.stem}.idx: does not describe {shard.name}" in text


def test_cls_and_json_that_disagree(folder):
    shard = shard_of(folder)

    def edit(members):
        first, label, about = members[:3]
        changed = json.loads(about[1]) | {"patient": "someone"}
        return [first, (label[0], b"9"), (about[0], json.dumps(changed).encode()), *members[3:]]

    rewrite(shard, edit)
    text = "\n".join(verify(folder))
    assert ".cls says b'9'" in text
    assert ".json and the index differ in patient" in text


def test_edited_idx(folder):
    idx = shard_of(folder).with_suffix(".idx")
    idx.write_text(idx.read_text().replace("jpg 512 ", "jpg 1024 "))
    assert verify(folder) == [f"{idx.name}: does not describe {shard_of(folder).name}; build again"]


def test_what_cannot_be_compared_at_all(folder):
    (folder / "index.parquet").write_bytes(b"PAR1")
    assert verify(folder)[0].startswith("index.parquet: not the index")
    assert "is not a Parquet file" in verify(folder)[1]
    (folder / "index.parquet").unlink()
    with pytest.raises(UserError, match=r"index\.parquet cannot be read"):
        verify(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="no finished shard folder"):
        verify(folder)
