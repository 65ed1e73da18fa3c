"""The whole path on a few hundred real images: build, train, stop, resume, evaluate, report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import launch, losses, verb

from brain_dist.judging.predictions import read_predictions
from brain_dist.store.dataset import open_dataset


@pytest.fixture(scope="module")
def some_images(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every eighth image of Cheng's tumours and of Br35H's tumour-free slices, laid out as the whole is."""
    root = tmp_path_factory.mktemp("real") / "collections"
    for folder in ("cheng/glioma", "cheng/meningioma", "cheng/pituitary", "br35h_no/notumor"):
        (root / folder).mkdir(parents=True)
        for image in sorted((real_data / folder).iterdir())[::8]:
            shutil.copy(image, root / folder)
    shutil.copy(real_data / "cheng" / "patients.csv", root / "cheng")
    return root


def test_real_images_from_folder_to_report(some_images: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    recipe = "shards/datasets/cheng_br35h.yaml"
    verb("shard", "build", "--recipe", recipe, "--source", str(some_images), "--out", str(shards))
    dataset = open_dataset(shards)
    assert len(dataset) == sum(1 for p in some_images.rglob("*.jpg"))
    for column in ("group", "patient"):
        values, splits = dataset.columns[column], dataset.columns["split"]
        for value in {v for v in values if v is not None}:
            assert len(set(splits[values == value])) == 1, f"{column} {value} crosses a split"

    words = [
        "--config",
        "configs/cpu_convnext.yaml",
        "--data.size",
        "48",
        "--train.epochs",
        "4",
        "--track.wandb",
        "off",
    ]
    words += ["--train.global_batch", "32", "--train.micro_batch", "16", "--model.name", "test_convnext"]
    words += ["--data.shards", str(shards), "--run.dir", str(tmp_path), "--run.name", "real"]
    run = tmp_path / "real"
    launch(2, "train", *words, expect=75, inside={"rank": 0, "place": "step", "count": 21, "action": "SIGTERM"})
    assert len(losses(run)) == 21
    launch(2, "train", *words)
    told = losses(run)
    assert len(told) == 4 * -(-len(dataset.rows("train")) // 32)
    assert np.mean(told[-8:]) < 0.9 * np.mean(told[:4]), "it learned"

    launch(2, "evaluate", str(run))
    found = read_predictions(run / "predictions" / "test.parquet")
    assert np.array_equal(found.row, dataset.rows("test"))
    majority = np.bincount(found.label).max() / len(found.label)
    assert json.loads((run / "predictions" / "test.json").read_text())["accuracy"] > majority
    verb("report", str(run))
    page = (run / "report" / "index.html").read_text()
    assert "meningioma" in page
    assert "data:image/" in page
