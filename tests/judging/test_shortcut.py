"""Planted shortcuts are found, and nothing is found in images without a shortcut."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import in_process
from PIL import Image

from brain_dist import shard
from brain_dist.errors import UserError
from brain_dist.judging.predictions import predictions_from_logits
from brain_dist.judging.shortcuts import restrict, shortcut_baselines
from brain_dist.store.dataset import Dataset, open_dataset

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
N = 60  # images per class, a fifth of them for testing: chance is 25 % with a standard deviation of 6 points


def head(rng: np.random.Generator, side: int, background: int = 0) -> np.ndarray:
    """A synthetic head: blocks of random gray in the middle of a flat background."""
    image = np.full((side, side), background, dtype=np.uint8)
    inner = side - side // 4
    blocks = np.kron(rng.integers(60, 220, (inner // 4, inner // 4)), np.ones((4, 4)))
    image[side // 8 : side // 8 + inner, side // 8 : side // 8 + inner] = blocks
    return image


def build(folder: Path, make: Callable[[np.random.Generator, int], np.ndarray]) -> Dataset:
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / "raw" / name).mkdir(parents=True)
        for i in range(N):
            Image.fromarray(make(rng, label)).save(folder / "raw" / name / f"{name}_{i}.png")
    arguments = ["--source", str(folder / "raw"), "--out", str(folder / "shards")]
    assert shard.main(["build", *arguments, "--workers", "1"]) == 0
    return open_dataset(folder / "shards")


def accuracies(dataset: Dataset) -> dict[str, float]:
    return {name: score["accuracy"] for name, score in shortcut_baselines(dataset)["baselines"].items()}


@pytest.fixture(scope="module")
def unmarked(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Classes that do not differ."""
    return build(tmp_path_factory.mktemp("unmarked"), lambda rng, label: head(rng, 64))


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Classes that differ in the size of their images."""
    return build(tmp_path_factory.mktemp("sized"), lambda rng, label: head(rng, 64 + 32 * label))


def test_finds_nothing_without_a_shortcut(unmarked: Dataset) -> None:
    result = shortcut_baselines(unmarked)
    assert all(score["accuracy"] < 0.45 for score in result["baselines"].values())
    assert (result["train"], result["test"]) == (len(unmarked.rows("train")), len(unmarked.rows("test")))
    assert (result["chance"], result["dataset_version"]) == (0.25, unmarked.version)


def test_finds_sizes_that_reveal_the_label(sized: Dataset) -> None:
    accuracy = accuracies(sized)
    assert accuracy["file_properties"] > 0.97
    assert accuracy["border"] < 0.6


def test_finds_a_background_that_reveals_the_label_unless_it_is_cropped(tmp_path: Path) -> None:
    accuracy = accuracies(build(tmp_path, lambda rng, label: head(rng, 64, background=2 * label)))
    assert accuracy["border"] > 0.97
    assert accuracy["border_head_crop"] < 0.45


def test_majority_predicts_the_most_frequent_training_class(unmarked: Dataset) -> None:
    label = unmarked.columns["label"]
    majority = np.bincount(label[unmarked.rows("train")]).argmax()
    score = shortcut_baselines(unmarked)["baselines"]["majority"]
    assert score["accuracy"] == pytest.approx((label[unmarked.rows("test")] == majority).mean())
    assert score["balanced_accuracy"] == pytest.approx(0.25)
    assert score["sensitivity"] == {name: float(c == majority) for c, name in enumerate(CLASSES)}


def test_the_command_line_writes_the_same_result(sized: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run" / "shortcut.json"
    command = [sys.executable, "-m", "brain_dist.shortcut", str(sized.root), "--json", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "file_properties" in result.stdout
    assert json.loads(out.read_text()) == shortcut_baselines(sized)
    refused = in_process("shortcut", str(tmp_path), expect=2)
    assert refused.out == ""
    assert refused.err.startswith("brain-dist: error: ")
    assert refused.err.count("\n") == 1


def test_an_empty_split_is_refused(unmarked: Dataset) -> None:
    columns = {**unmarked.columns, "split": np.full(len(unmarked), "train", dtype=object)}
    with pytest.raises(UserError, match="split test has images of no class only"):
        shortcut_baselines(replace(unmarked, columns=columns))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_of_one_class_is_refused(unmarked: Dataset, split: str) -> None:
    """Every guess would be right."""
    columns = unmarked.columns
    other = {"train": "test", "test": "train"}[split]
    split_of = np.where((columns["label"] > 0) & (columns["split"] == split), other, columns["split"]).astype(object)
    with pytest.raises(UserError, match=f"split {split} has images of glioma only"):
        shortcut_baselines(replace(unmarked, columns=columns | {"split": split_of}))


def test_chance_does_not_count_classes_without_images(unmarked: Dataset) -> None:
    label = np.where(unmarked.columns["label"] == 3, 2, unmarked.columns["label"])
    result = shortcut_baselines(replace(unmarked, columns=unmarked.columns | {"label": label}))
    assert result["chance"] == pytest.approx(1 / 3)


def test_intervals_resample_groups_and_no_image_is_left_out(unmarked: Dataset) -> None:
    """Ten images of a patient are not ten patients."""
    rows = unmarked.rows("test")
    single = shortcut_baselines(unmarked)
    group = unmarked.columns["group"].copy()
    group[rows] = [f"patient {number // 10}" for number in range(len(rows))]
    grouped = shortcut_baselines(replace(unmarked, columns=unmarked.columns | {"group": group}))
    assert (single["groups"], grouped["groups"]) == (len(set(unmarked.columns["group"][rows])), -(-len(rows) // 10))
    for name, score in single["baselines"].items():
        assert score["accuracy_interval"]["interval_of"] == "percentile"
        low, high = score["accuracy_interval"]["interval"]
        assert low < score["accuracy"] < high
        assert grouped["baselines"][name]["accuracy"] == score["accuracy"]
        other = grouped["baselines"][name]["accuracy_interval"]
        assert other == {"refused": f"only {grouped['groups']} groups; an interval over groups needs 10"}
    size = len(unmarked.columns["split"])
    assert single["train"] + single["test"] + len(unmarked.rows("val")) == size


def test_a_fold_is_scored_by_forests_trained_on_neither_it_nor_the_next(tmp_path: Path, sized: Dataset) -> None:
    arguments = ["--source", str(sized.root.parent / "raw"), "--out", str(tmp_path / "folds"), "--workers", "1"]
    assert shard.main(["build", *arguments, "--split", "kfold", "--folds", "4"]) == 0
    out = tmp_path / "shortcut.json"
    result = in_process("shortcut", str(tmp_path / "folds"), "--fold", "3", "--json", str(out))
    assert ", fold 3 of 4: trained on " in result.out
    written, dataset = json.loads(out.read_text()), open_dataset(tmp_path / "folds")
    sizes = [int((dataset.columns["split"] == f"fold{number}").sum()) for number in range(4)]
    assert (written["fold"], written["test"], written["train"]) == (3, sizes[3], sizes[1] + sizes[2])
    assert written["baselines"]["file_properties"]["accuracy"] > 0.97
    for extra, message in (([], "--fold is not set"), (["--fold", "4"], "--fold=4 is out of range")):
        assert message in in_process("shortcut", str(tmp_path / "folds"), *extra, expect=2).err


def test_baselines_are_scored_on_the_images_that_count(unmarked: Dataset) -> None:
    result = shortcut_baselines(unmarked)
    rows = unmarked.rows("test")[::3][::-1]
    table = predictions_from_logits(unmarked, rows, np.zeros((len(rows), len(CLASSES))), run="r", step=1)
    part = restrict(result, table)
    assert (part["test"], part["train"]) == (len(rows), result["train"])
    label = unmarked.columns["label"]
    for name, score in part["baselines"].items():
        whole = dict(zip(result["rows"], result["baselines"][name]["predicted"], strict=True))
        assert score["accuracy"] == np.mean([whole[row] == label[row] for row in rows])
        assert score["accuracy_interval"] != result["baselines"][name]["accuracy_interval"]
    with pytest.raises(KeyError):
        restrict(part, replace(table, row=unmarked.rows("train")[: len(rows)]))
