"""The Python API: open a dataset, iterate its batches, load a run, get its predictions and metrics."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, command, verb

import brain_dist
from brain_dist.inference.features import penultimate_features


@pytest.fixture(scope="module")
def run(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    batch = ["--train.global_batch", "24", "--train.micro_batch", "24", "--train.epochs", "1", "--optim.lr", "3e-3"]
    output = ["--data.shards", str(phantom_shards), "--run.dir", str(runs), "--run.name", "run"]
    verb("train", *TINY, *batch, *output, "--train.precision", "fp32")
    return runs / "run"


def test_example_of_the_readme(run: Path, phantom_shards: Path) -> None:
    dataset = brain_dist.open_dataset(phantom_shards)
    assert dataset.classes == ("glioma", "meningioma", "notumor", "pituitary")
    rows = []
    for batch in brain_dist.batches(dataset, "val", size=64):
        assert batch.image.shape == (len(batch.label), 3, 64, 64)
        rows += batch.row.tolist()
    assert rows == dataset.rows("val").tolist()

    predictions = brain_dist.load_run(run).predict("test")
    metrics = predictions.evaluate()
    assert len(predictions) == metrics["n"] == len(dataset.rows("test"))

    verb("evaluate", str(run))
    written = brain_dist.read_predictions(run / "predictions" / "test.parquet")
    np.testing.assert_allclose(written.prob, predictions.prob, atol=1e-6)
    assert written.evaluate()["accuracy"] == metrics["accuracy"]


def test_features_are_what_the_classifier_sees(run: Path) -> None:
    loaded = brain_dist.load_run(run)
    rows = loaded.rows("test")[[5, 0, 17]]
    features = torch.from_numpy(penultimate_features(loaded, rows, micro_batch=2))
    with torch.no_grad():
        expected = loaded.model(loaded.images(rows.tolist()))
        logits = loaded.model.get_classifier()(features)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loader", ["dali", "opencv", "torch"])
def test_batches_have_no_padding_and_are_normalised_on_request(phantom_shards: Path, loader: str) -> None:
    dataset = brain_dist.open_dataset(phantom_shards)
    settings = {"batch_size": 7, "size": 32, "loader": loader}
    raw = list(brain_dist.batches(dataset, "test", normalize=False, **settings))
    normalised = list(brain_dist.batches(dataset, "test", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), **settings))
    sizes = [len(batch.label) for batch in raw]
    assert sum(sizes) == len(dataset.rows("test"))
    assert set(sizes[:-1]) == {7}
    assert all(batch.valid.all() for batch in raw)
    for gray, image in zip(raw, normalised, strict=True):
        assert (gray.image.dtype, gray.image.shape[1]) == (torch.uint8, 1)
        expected = ((gray.image.float() / 255 - 0.5) / 0.25).expand(-1, 3, -1, -1)
        torch.testing.assert_close(image.image, expected, rtol=0, atol=1e-5)
        assert gray.label.tolist() == dataset.columns["label"][gray.row.numpy()].tolist()
        for name in ("rows", "valid", "position", "visit", "weight"):
            assert len(getattr(gray.micro, name)) == len(gray.label)


def test_import_is_light() -> None:
    code = "import sys, brain_dist; print(dir(brain_dist), [m for m in ('numpy', 'torch', 'timm') if m in sys.modules])"
    printed = command([sys.executable, "-c", code]).out
    assert printed.endswith("[]\n")
    assert all(name in printed for name in brain_dist.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'open_datset'"):
        brain_dist.open_datset  # noqa: B018
