"""The complete pipeline on a few hundred real images: build, train, stop, resume, evaluate, report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import launch, losses, verb

from brain_dist.judging.predictions import read_predictions
from brain_dist.store.dataset import Dataset, open_dataset

GLOBAL_BATCH = 32
EPOCHS = 4


@pytest.fixture(scope="module")
def some_images(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every eighth image of Cheng's tumours and of Br35H's tumour-free slices, in the original layout."""
    root = tmp_path_factory.mktemp("real") / "collections"
    for folder in ("cheng/glioma", "cheng/meningioma", "cheng/pituitary", "br35h_no/notumor"):
        (root / folder).mkdir(parents=True)
        for image in sorted((real_data / folder).iterdir())[::8]:
            shutil.copy(image, root / folder)
    shutil.copy(real_data / "cheng" / "patients.csv", root / "cheng")
    return root


def assert_no_leak(dataset: Dataset) -> None:
    """All images of a group, and of a patient, are in the same split."""
    splits = dataset.columns["split"]
    for column in ("group", "patient"):
        values = dataset.columns[column]
        for value in {v for v in values if v is not None}:
            assert len(set(splits[values == value])) == 1, f"{column} {value} is in several splits"


def test_pipeline_on_real_images(some_images: Path, tmp_path: Path) -> None:
    shards, run = tmp_path / "shards", tmp_path / "real"
    recipe = "shards/datasets/cheng_br35h.yaml"
    verb("shard", "build", "--recipe", recipe, "--source", str(some_images), "--out", str(shards))
    dataset = open_dataset(shards)
    assert len(dataset) == len(list(some_images.rglob("*.jpg")))
    assert_no_leak(dataset)

    arguments = [
        *("--config", "configs/cpu_convnext.yaml", "--model.name", "test_convnext", "--data.size", "48"),
        *("--train.epochs", str(EPOCHS), "--train.global_batch", str(GLOBAL_BATCH), "--train.micro_batch", "16"),
        *("--data.shards", str(shards), "--run.dir", str(tmp_path), "--run.name", "real", "--track.wandb", "off"),
    ]
    stop = {"rank": 0, "place": "step", "count": 21, "action": "SIGTERM"}
    launch(2, "train", *arguments, expect=75, inject=stop)
    assert len(losses(run)) == 21
    launch(2, "train", *arguments)
    training_losses = losses(run)
    assert len(training_losses) == EPOCHS * -(-len(dataset.rows("train")) // GLOBAL_BATCH)
    assert np.mean(training_losses[-8:]) < 0.9 * np.mean(training_losses[:4]), "the loss did not decrease"

    launch(2, "evaluate", str(run))
    predictions = read_predictions(run / "predictions" / "test.parquet")
    assert np.array_equal(predictions.row, dataset.rows("test"))
    majority = np.bincount(predictions.label).max() / len(predictions.label)
    assert json.loads((run / "predictions" / "test.json").read_text())["accuracy"] > majority
    verb("report", str(run))
    page = (run / "report" / "index.html").read_text()
    assert "meningioma" in page
    assert "data:image/" in page
