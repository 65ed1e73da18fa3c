"""Verify finds every kind of damage and names the file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import write_collection
from PIL import Image

from brain_dist.building.build import build
from brain_dist.building.verify import verify
from brain_dist.collection.recipes import default_recipe, parse_recipe
from brain_dist.errors import Fault, UserError
from brain_dist.store.dataset import open_dataset
from brain_dist.store.index import arrow_schema
from brain_dist.store.join import join
from brain_dist.store.options import BuildOptions
from brain_dist.store.reader import ShardReader


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("verify")
    source = write_collection(base / "mine", each=6, size=64)
    part = {"patients": {"file": "patients.csv", "id": "id", "patient": "patient"}}
    options = BuildOptions(shard_size="6", fractions=(0.5, 0.25, 0.25))
    build(source, base / "out", parse_recipe({"parts": [part]}, "it"), options, workers=1, allow_missing=True)
    return base / "out"


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def edit_index(folder: Path, change, *, hide: bool = False) -> None:
    """Change the index's rows; with ``hide`` the checksum in the manifest is changed, too."""
    rows = pq.read_table(folder / "index.parquet").to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema()), folder / "index.parquet")
    if hide:
        found = hashlib.sha256((folder / "index.parquet").read_bytes()).hexdigest()
        change_manifest(folder, lambda manifest: manifest.update(index_sha256=found))


def change_manifest(folder: Path, change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def rewrite(shard: Path, change) -> None:
    """Write a shard again with its members changed."""
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
def test_a_built_folder_has_no_problems(whole, workers):
    assert verify(whole, workers=workers) == []


def test_flipped_byte_names_the_sample(folder):
    dataset = open_dataset(folder)
    row = int(dataset.rows("train")[2])
    shard = folder / dataset.columns["shard"][row]
    data = bytearray(shard.read_bytes())
    data[dataset.columns["offset"][row] + 50] ^= 0xFF
    shard.write_bytes(data)
    assert verify(folder) == [
        f"{shard.name}: the bytes are not those that were built (sha256 differs)",
        f"{shard.name}: sample {dataset.columns['key'][row]}: the image's bytes are damaged (crc32 differs)",
    ]


MEASURED = {"width": 20, "height": 20, "head_x": 3, "head_w": 5, "pixel_hash": "0" * 32, "phash": "0" * 16}


@pytest.mark.parametrize("column", MEASURED)
def test_a_row_that_does_not_describe_its_image(folder, column):
    edit_index(folder, lambda rows: rows[5].update({column: MEASURED[column]}), hide=True)
    key = open_dataset(folder).columns["key"][5]
    expected = f"the image and the index differ in {column}"
    if column in ("width", "height"):
        size = "20 x 64" if column == "width" else "64 x 20"
        expected = f"the image is 64 x 64 pixels, in the index {size}"
    problems = [problem for problem in verify(folder) if "audit" not in problem]  # a copy less, or more
    assert problems == [f"{open_dataset(folder).columns['shard'][5]}: sample {key}: {expected}"]


def test_a_huge_image_in_the_row_of_a_small_one_is_not_decoded(folder):
    shard, huge = shard_of(folder), io.BytesIO()
    Image.new("L", (12_000, 12_000)).save(huge, "PNG")  # 144 megabytes in a file of 140 kB

    def replace(members):
        name = members[0][0].rpartition(".")[0]
        return [(f"{name}.png", huge.getvalue()), *members[1:]]

    rewrite(shard, replace)
    with tarfile.open(shard) as tar:
        members = tar.getmembers()

    def describe(rows):
        images = (member for member in members if not member.name.endswith((".cls", ".json")))
        for row, member in zip((row for row in rows if row["shard"] == shard.name), images, strict=True):
            row.update(offset=member.offset_data, size=member.size)
            if member is members[0]:
                row.update(crc32=zlib.crc32(huge.getvalue()))

    edit_index(folder, describe, hide=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    problems = verify(folder)
    assert any("the image is 12000 x 12000 pixels, in the index 64 x 64" in problem for problem in problems)
    row = open_dataset(folder).columns["key"].tolist().index(members[0].name.rpartition(".")[0])
    with pytest.raises(
        Fault, match=r"the image has \(12000, 12000\) pixels \(width, height\), in the index \(64, 64\)"
    ):
        ShardReader(open_dataset(folder)).read(row)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB


def test_exit_code_2_although_nobody_reads_the_output(folder):
    shard_of(folder).unlink()
    code = "import sys; from brain_dist.errors import leave; from brain_dist.shard import main; leave(main)"
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", code, "verify", str(folder), "--workers", "1"]
    done = subprocess.run(command, stdout=write, stderr=write, cwd=ROOT, check=False, timeout=60)
    os.close(write)
    assert done.returncode == 2


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


def test_a_missing_idx_hides_no_damage_and_a_copy_without_any_is_complete(folder):
    shard = shard_of(folder)
    shard.with_suffix(".idx").unlink()
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    assert verify(folder)[0] == f"{shard.stem}.idx: missing"
    assert verify(folder)[1].startswith(f"{shard.name}: the bytes are not those that were built")
    data[700] ^= 1
    shard.write_bytes(data)
    for idx in folder.glob("*.idx"):
        idx.unlink()
    (folder / "notes.txt").write_text("no reader opens it")
    assert verify(folder) == []


def test_a_damaged_index_hides_no_damaged_shard(folder):
    shard = shard_of(folder)
    (folder / "index.parquet").write_bytes(b"")
    shard.write_bytes(shard.read_bytes()[:-512])
    index, length, bytes_ = verify(folder)
    assert index.startswith("index.parquet: ")
    assert "bytes, the manifest says" in length
    assert bytes_ == f"{shard.name}: the bytes are not those that were built (sha256 differs)"


def test_edited_index_is_found_even_if_its_checksum_was_changed(folder):
    def relabel(rows):
        rows[0]["label"] = (rows[0]["label"] + 1) % 4
        rows[1]["offset"] += 512

    edit_index(folder, relabel, hide=True)
    dataset = open_dataset(folder)
    keys = dataset.columns["key"]
    text = "\n".join(verify(folder))
    assert f"sample {keys[0]}: .cls is" in text
    assert f"sample {keys[0]}: .json and the index differ in class" in text
    assert f"sample {keys[1]}: " in text
    assert "rows in test, the manifest says" in text


def test_edited_index_is_found_by_its_checksum(folder):
    edit_index(folder, lambda rows: rows[0].update(phash="0" * 16))
    assert verify(folder) == ["index.parquet: not the index that the manifest describes (sha256 differs)"]


def test_group_that_crosses_a_split(folder):
    def join(rows):
        splits = {row["split"]: row for row in rows}
        splits["test"]["group"] = splits["train"]["group"]

    edit_index(folder, join, hide=True)
    group = next(row["group"] for row in pq.read_table(folder / "index.parquet").to_pylist() if row["split"] == "train")
    problems = verify(folder)
    assert any(problem.endswith("is in more than one split") for problem in problems), group


def test_missing_and_repeated_rows(folder):
    edit_index(folder, lambda rows: rows.__setitem__(1, rows[0]), hide=True)
    text = "\n".join(verify(folder))
    assert "occurs more than once" in text
    edit_index(folder, lambda rows: rows.pop(), hide=True)
    assert "23 rows, the manifest says 24" in "\n".join(verify(folder))


def test_members_in_another_order(folder):
    shard = shard_of(folder)

    def swap(members):
        return [*members[3:6], *members[:3], *members[6:]]

    rewrite(shard, swap)
    text = "\n".join(verify(folder))
    assert " instead" in text
    assert f"{shard.stem}.idx: does not describe {shard.name}" in text


def test_cls_and_json_that_disagree(folder):
    shard = shard_of(folder)

    def edit(members):
        first, label, about = members[:3]
        changed = json.loads(about[1]) | {"patient": "someone"}
        return [first, (label[0], b"9"), (about[0], json.dumps(changed).encode()), *members[3:]]

    rewrite(shard, edit)
    text = "\n".join(verify(folder))
    assert ".cls is b'9'" in text
    assert ".json and the index differ in patient" in text
    for about in (b"[]", b"{", b"[" * 100_000):
        rewrite(shard, lambda members, about=about: [*members[:2], (members[2][0], about), *members[3:]])
        assert "sample" in verify(folder)[2]
        assert ".json " in "\n".join(verify(folder))


def test_edited_idx(folder):
    idx = shard_of(folder).with_suffix(".idx")
    idx.write_text(idx.read_text().replace("jpg 512 ", "jpg 1024 "))
    assert verify(folder) == [f"{idx.name}: does not describe {shard_of(folder).name}; build again"]


def test_unreadable_index_and_manifest(folder):
    (folder / "index.parquet").write_bytes(b"PAR1")
    assert verify(folder) == ["index.parquet: not the index that the manifest describes (sha256 differs)"]
    change_manifest(folder, lambda manifest: manifest.update(index_sha256=hashlib.sha256(b"PAR1").hexdigest()))
    assert "is not a Parquet file" in verify(folder)[0]
    (folder / "index.parquet").unlink()
    with pytest.raises(UserError, match=r"index\.parquet cannot be read"):
        verify(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="is not a complete shard folder"):
        verify(folder)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m.update(samples=25), "index.parquet: 24 rows, the manifest says 25"),
        (lambda m: m.update(groups=1), "8 groups, the manifest says 1"),
        (lambda m: m["counts"].pop("val"), "index.parquet: rows in 'val', a split that is not in the manifest"),
        (lambda m: m["counts"]["test"].update(glioma=99), "glioma rows in test, the manifest says 99"),
        (lambda m: m["classes"].reverse(), "manifest.json: recipe.classes is "),
        (lambda m: m.update(name="other"), "rows of 'train' in mine-train-00000.tar, the dataset is 'other'"),
        (lambda m: m["shards"].pop(), ", which is not in the manifest"),
        (lambda m: m["shards"][0].update(samples=1), "rows in mine-test-00000.tar, the manifest says 1"),
        (lambda m: m["shards"][0].update(size=1), "bytes, the manifest says 1"),
        (lambda m: m["audit"].pop("near_pairs"), "manifest.json: audit.near_pairs is missing"),
        (lambda m: m["audit"].update(test_leaked=1), "manifest.json: audit: test_leaked is 1, by the index 0"),
        (lambda m: m["shards"][0].update(name="/etc/passwd"), "/etc/passwd: missing"),
        (lambda m: m["audit"].update(exact_redundant=3), "manifest.json: audit: exact_redundant is 3, by the index 0"),
        (lambda m: m["audit"].update(largest_groups=[]), "audit: largest_groups is [], by the index [3, 3"),
        (lambda m: m["split"].update(seed=7), "options.seed is 0, but elsewhere 7"),
        (lambda m: m["split"].update(method="original"), "options.split is 'grouped', but elsewhere 'original'"),
        (lambda m: m["options"].update(fractions=[1, 0, 0]), "options.fractions is [1, 0, 0], but elsewhere"),
        (lambda m: m.update(licence="mine"), "recipe.licence is "),
    ],
)
def test_an_edited_manifest_is_compared_with_the_rest_and_itself(folder, change, problem):
    change_manifest(folder, change)
    assert problem in "\n".join(verify(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["counts"]["test"].pop("glioma"), "counts.test does not list the classes"),
        (lambda m: m.update(classes=[*m["classes"][:3], "x"]), "counts.train does not list the classes"),
        (lambda m: m["counts"]["val"].update(glioma=True), "counts.val.glioma: Input should be a valid integer"),
        (lambda m: m["shards"][0].pop("sha256"), "shards.0.sha256: Field required"),
        (lambda m: m.pop("licence"), "licence: Field required"),
        (lambda m: m.update(recipe=7), "recipe: Input should be"),
        (lambda m: m.update(split=[]), "split: Input should be"),
        (lambda m: m["split"].pop("method"), "split.method is missing"),
        (lambda m: m["options"].update(keep_plank=True), "options.keep_plank is not an option of a build"),
    ],
)
def test_a_malformed_manifest_is_a_one_line_error(folder, change, message):
    change_manifest(folder, change)
    for function in (verify, open_dataset):
        with pytest.raises(UserError) as caught:
            function(folder)
        assert str(caught.value).startswith(f"{folder / 'manifest.json'}: {message}")
        assert "\n" not in str(caught.value)


# Entries of the manifest that cannot be checked against anything
TRUSTED = {"source_listing_sha256", "skipped", "excluded", "builder"}
TRUSTED |= {"recipe", "options.max_side", "options.shard_size", "options.skip_bad", "options.folds", "options.test_on"}
TRUSTED |= {"options.keep_blank", "options.jpeg_quality"}
TRUSTED |= {"split.off_by", "audit.near_pairs", "audit.near_pairs_mirrored", "audit.images_with_label_conflict"}


def edited(before: dict, after: dict) -> set[str]:
    """Names of entries that differ, one level deep in mappings."""
    found = set()
    for key in before.keys() | after.keys():
        one, other = before.get(key), after.get(key)
        if key in ("options", "split", "audit") and isinstance(one, dict) and isinstance(other, dict):
            found |= {f"{key}.{name}" for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
        elif one != other:
            found.add(key)
    return found


@pytest.mark.parametrize("name", ["mine-train-00000.tar", "mine-train-00000.idx", "index.parquet", "manifest.json"])
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_changed_byte_and_any_truncation_is_found_in_its_file(whole, name, data):
    file = whole / name
    good = file.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    change = data.draw(st.integers(0, 255))  # 0 truncates the file there
    bad = good[:place] + (bytes([good[place] ^ change]) + good[place + 1 :] if change else b"")
    try:
        file.write_bytes(bad)
        if name == "manifest.json":
            manifest_changed(whole, good, bad)
            return
        problems = verify(whole)
        assert any(problem.startswith(f"{name}: ") for problem in problems), problems
        if name == "index.parquet":
            with pytest.raises(UserError, match=r"index\.parquet .*sha256 differs"):
                open_dataset(whole)
        if file.suffix == ".tar":
            samples_damaged(whole, file, bad, problems)
    finally:
        file.write_bytes(good)


def manifest_changed(folder: Path, good: bytes, bad: bytes) -> None:
    """An edit is an error or a problem, or changes only trusted entries; it changes the dataset version."""
    try:
        dataset = open_dataset(folder)
    except UserError:
        with pytest.raises(UserError, match=r"manifest\.json|index\.parquet"):
            open_dataset(folder)
        return
    assert dataset.version == hashlib.sha256(bad).hexdigest() != hashlib.sha256(good).hexdigest()
    if not verify(folder):
        assert edited(json.loads(good), json.loads(bad)) <= TRUSTED


def samples_damaged(folder: Path, file: Path, bad: bytes, problems: list[str]) -> None:
    """A reader returns exactly the undamaged samples; verify lists the others if the tar is complete."""
    dataset = open_dataset(folder)
    reader, columns = ShardReader(dataset), dataset.columns
    size = next(entry.size for entry in dataset.manifest.shards if entry.name == file.name)
    for row in np.flatnonzero(columns["shard"] == file.name):
        found = bad[columns["offset"][row] :][: columns["size"][row]]
        if zlib.crc32(found) == columns["crc32"][row]:
            assert reader.read(row) == found
            continue
        with pytest.raises(Fault, match=f"{file.name}, sample {columns['key'][row]} "):
            reader.read(row)
        if len(bad) == size:
            assert (
                f"{file.name}: sample {columns['key'][row]}: the image's bytes are damaged (crc32 differs)" in problems
            )


def test_a_joined_folder_is_verified_with_its_sources(whole, tmp_path):
    one, two = (Path(shutil.copytree(whole, tmp_path / name)) for name in ("one", "two"))
    source = write_collection(tmp_path / "mine", each=4, size=64)
    shutil.rmtree(two)
    build(source, two, default_recipe(source), BuildOptions(seed=1), workers=1, allow_missing=True)
    joined = tmp_path / "joined"
    join([one, two], joined, leave_out=None, workers=1)
    assert verify(joined) == []

    edit_index(joined, lambda rows: rows[0].update(crc32=1), hide=True)
    rows = pq.read_table(joined / "index.parquet").to_pylist()
    place = f"the image at byte {rows[0]['offset']} of {rows[0]['shard']}"
    assert verify(joined) == [f"index.parquet: {place} is not the image of its source"]
    shard = shard_of(one)
    shard.write_bytes(shard.read_bytes()[:-512])
    problems = verify(joined)
    assert problems[1] == f"{one}: {shard.name}: the bytes are not those that were built (sha256 differs)"
    (two / "index.parquet").unlink()
    assert f"{two / 'index.parquet'} cannot be read" in verify(joined)[-1]
    change_manifest(two, lambda manifest: manifest.update(title="another"))
    assert f"{two} was rebuilt since" in verify(joined)[-1]
    (joined / "index.parquet").write_bytes(b"")
    assert verify(joined) == ["index.parquet: not the index that the manifest describes (sha256 differs)"]
