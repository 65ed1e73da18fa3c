"""The audit on a phantom collection in which every copy is known, through the command line."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from helpers import in_process

from benchmarks.support.planted import score
from brain_dist.audit.counts import summary
from brain_dist.audit.survey import Source, Survey, survey_collections
from brain_dist.collection.recipes import default_recipe
from brain_dist.phantom.planting import KINDS
from brain_dist.store.dataset import open_dataset

PATIENTS, SLICES = 64, 3
SIZE = ["--patients", str(PATIENTS), "--slices", str(SLICES), "--size", "128", "--seed", "0"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """192 slices, each with one copy, 24 of each kind, under a published split."""
    folder = tmp_path_factory.mktemp("planted") / "collection"
    in_process("shard", "phantom", "--out", str(folder), *SIZE, "--plant", "1", "--published", "--workers", "1")
    return folder


@pytest.fixture(scope="module")
def survey(root: Path) -> Survey:
    source = Source("planted", root, default_recipe(root))
    return survey_collections([source], workers=1, skip_bad=False, progress=lambda *_: None)


def ids_of(survey: Survey) -> list[str]:
    return [Path(path).stem for path in survey.path]


def planted(root: Path, kind: str) -> int:
    with (root / "planted.csv").open(newline="") as file:
        return sum(row["kind"] == kind for row in csv.DictReader(file))


def test_planted_copies_are_found_and_other_images_are_not(root: Path, survey: Survey) -> None:
    result = score(root, ids_of(survey), survey.first, survey.second)
    assert result.planted == dict.fromkeys(KINDS, PATIENTS * SLICES // len(KINDS))
    for kind, count in result.planted.items():
        assert result.found[kind] >= 0.95 * count, kind
    assert result.recall >= 0.99
    assert result.precision >= 0.99


def test_conflicts_and_leaks_are_counted(root: Path, survey: Survey) -> None:
    counts = summary(survey)["collections"]["planted"]
    assert counts["images"] == 2 * PATIENTS * SLICES
    assert counts["label_conflicts"] == planted(root, "conflict")
    assert counts["test_images_with_any_train_copy"] == planted(root, "leak")
    assert counts["test_images_with_exact_train_copy"] == 0  # a leaked copy is a changed one
    assert counts["test_images_with_patient_in_train"] == 0  # its patient is a new one
    assert counts["exact_redundant"] >= planted(root, "duplicate")


def test_a_build_with_the_published_split_reports_the_leaks(root: Path, tmp_path: Path) -> None:
    options = ["--split", "original", "--fractions", "0.8,0,0.2", "--workers", "1"]
    result = in_process("shard", "build", "--source", str(root), "--out", str(tmp_path / "built"), *options)
    dataset = open_dataset(tmp_path / "built")
    assert dataset.name == "phantom"
    assert dataset.manifest.audit["test_with_copy_in_train"] == planted(root, "leak")
    assert f"{planted(root, 'leak')} by a copy" in result.out


def test_the_score_counts_missing_and_false_pairs(root: Path, survey: Survey) -> None:
    ids, first, second = ids_of(survey), survey.first, survey.second
    complete = score(root, ids, first, second)
    empty = score(root, ids, first[:0], second[:0])
    assert set(empty.found.values()) == {0}
    assert (empty.recall, empty.right, empty.neighbours, empty.false) == (0, 0, 0, 0)
    with (root / "planted.csv").open(newline="") as file:
        kinds = {row["id"]: row["kind"] for row in csv.DictReader(file)}
    cropped = np.array([kinds.get(ids[a]) == "cropped" or kinds.get(ids[b]) == "cropped"
                        for a, b in zip(first, second, strict=True)])  # fmt: skip
    without = score(root, ids, first[~cropped], second[~cropped])
    assert without.found == {**complete.found, "cropped": 0}
    with (root / "patients.csv").open(newline="") as file:
        patients = {row["id"]: row["patient"] for row in csv.DictReader(file) if row["id"] not in kinds}
    first_image = next(index for index, name in enumerate(ids) if name in patients)
    other_patient = next(
        index for index, name in enumerate(ids) if name in patients and patients[name] != patients[ids[first_image]]
    )
    worse = score(root, ids, np.append(first, first_image), np.append(second, other_patient))
    assert worse.false == complete.false + 1
    assert worse.found == complete.found
    assert worse.precision < complete.precision
