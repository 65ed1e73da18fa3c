"""Patients of a collection that names none are known through the copies in another collection."""

from __future__ import annotations

import csv
import json
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
from helpers import in_process

from brain_dist.building.verify import verify
from brain_dist.store.dataset import Dataset, open_dataset


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, str]]:
    """Shards that name patients, a folder of their pictures' copies without patients, and copy → its patient."""
    root = tmp_path_factory.mktemp("borrowing")
    options = ["--patients", "24", "--slices", "4", "--size", "128", "--plant", "1", "--workers", "1"]
    in_process("shard", "phantom", "--out", str(root / "named"), *options)
    with (root / "named" / "planted.csv").open(newline="") as file:
        original = {row["id"]: row["of"] for row in csv.DictReader(file)}
    with (root / "named" / "patients.csv").open(newline="") as file:
        patient = {row["id"]: row["patient"] for row in csv.DictReader(file)}
    for path in sorted((root / "named").glob("*/*.jpg")):
        if path.parent.name != "masks" and path.stem in original:
            copy = root / "nameless" / path.relative_to(root / "named")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, copy)
    in_process("shard", "build", "--source", str(root / "named"), "--out", str(root / "shards"), "--workers", "1")
    return root / "shards", root / "nameless", {name: patient[of] for name, of in original.items()}


def build(source: Path, out: Path, *options: str) -> tuple[Dataset, str]:
    text = in_process("shard", "build", "--source", str(source), "--out", str(out), "--workers", "1", *options).out
    return open_dataset(out), text


def torn_patients(dataset: Dataset, truth: dict[str, str]) -> set[str]:
    """Patients with images in several splits."""
    splits = defaultdict(set)
    for source, split in zip(dataset.columns["source"], dataset.columns["split"], strict=True):
        splits[truth[Path(source).stem]].add(split)
    return {patient for patient, names in splits.items() if len(names) > 1}


def test_patients_known_through_copies_are_in_one_split(folders, tmp_path):
    shards, nameless, truth = folders
    before, text = build(nameless, tmp_path / "before")
    assert torn_patients(before, truth)
    assert "patients_from" not in before.manifest.audit
    assert "patients_from" not in json.loads((tmp_path / "before" / "manifest.json").read_text())["options"]
    dataset, text = build(nameless, tmp_path / "after", "--patients-from", str(shards))
    assert torn_patients(dataset, truth) == set()
    expected = [f"phantom/{truth[Path(source).stem]}" for source in dataset.columns["source"]]
    assert dataset.columns["patient"].tolist() == expected
    images, patients = len(truth), len(set(truth.values()))
    assert dataset.manifest.audit["patients_from"] == {"name": "phantom", "images": images, "patients": patients}
    assert f"patients: {images} images got one of {patients} patients from phantom" in text
    assert verify(tmp_path / "after") == []
    # What is counted among the collection's own images does not depend on the other collection
    for key in ("exact_redundant", "near_pairs", "images_with_label_conflict"):
        assert dataset.manifest.audit[key] == before.manifest.audit[key]


def test_the_published_split_counts_patients_that_are_known_through_copies(folders, tmp_path):
    shards, nameless, truth = folders
    published = tmp_path / "published"
    for number, path in enumerate(sorted(nameless.glob("*/*.jpg"))):
        copy = published / ("Testing" if number % 4 == 0 else "Training") / path.relative_to(nameless)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    options = ["--split", "original", "--fractions", "0.8,0,0.2", "--patients-from", str(shards)]
    dataset, _ = build(published, tmp_path / "out", *options)
    where = defaultdict(set)
    for path in published.glob("*/*/*.jpg"):
        where[truth[path.stem]].add(path.parts[-3])
    leaked = sum(where[truth[path.stem]] == {"Training", "Testing"} for path in published.glob("Testing/*/*.jpg"))
    assert 0 < leaked == dataset.manifest.audit["test_with_patient_in_train"]


def test_an_own_patient_stays_and_joins_the_other_collection_s(folders, tmp_path):
    """Two own patients who show pictures of one patient of the other collection share a group."""
    shards, nameless, truth = folders
    named = tmp_path / "named"
    shutil.copytree(nameless, named)
    by_patient = defaultdict(list)
    for path in sorted(named.glob("*/*.jpg")):
        by_patient[truth[path.stem]].append(path.stem)
    one, other = next(stems for stems in by_patient.values() if len(stems) > 1)[:2]
    (named / "patients.csv").write_text(f"id,patient\n{one},A\n{other},B\n")
    dataset, _ = build(named, tmp_path / "out", "--patients-from", str(shards))
    columns = dataset.columns
    row_of = {Path(source).stem: row for row, source in enumerate(columns["source"])}
    assert [columns["patient"][row_of[one]], columns["patient"][row_of[other]]] == ["A", "B"]
    assert columns["group"][row_of[one]] == columns["group"][row_of[other]]


def test_a_build_in_parts_gives_the_same_folder(folders, tmp_path):
    shards, nameless, _ = folders
    options = ["--patients-from", str(shards)]
    build(nameless, tmp_path / "whole", *options)
    source = ["--source", str(nameless), "--out", str(tmp_path / "parts"), "--workers", "1", "--parts", "2", *options]
    for part in "01":
        in_process("shard", "build", *source, "--part", part)
    in_process("shard", "build", *source)
    assert (tmp_path / "whole" / "manifest.json").read_bytes() == (tmp_path / "parts" / "manifest.json").read_bytes()


def test_mistakes_are_one_line(folders, tmp_path):
    shards, nameless, _ = folders
    build(nameless, tmp_path / "none")
    common = ["shard", "build", "--source", str(nameless), "--workers", "1", "--out"]
    result = in_process(*common, str(tmp_path / "x"), "--patients-from", str(tmp_path / "none"), expect=2)
    assert f"--patients-from {tmp_path / 'none'} names no patients" in result.err
    result = in_process(*common, str(tmp_path / "x"), "--patients-from", str(tmp_path), expect=2)
    assert "is not a complete shard folder" in result.err
    result = in_process(*common, str(tmp_path / "none"), "--patients-from", str(shards), expect=2)
    assert "was built with --patients-from None" in result.err
    build(nameless, tmp_path / "with", "--patients-from", str(shards))
    result = in_process(*common, str(tmp_path / "with"), expect=2)
    assert "was built with --patients-from" in result.err
