"""Evaluation is exact over any number of ranks, and refuses changed shards and damaged weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, launch, verb
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score, roc_auc_score

from brain_dist.errors import Fault, UserError
from brain_dist.inference.logits import predict_logits
from brain_dist.inference.run import load_run
from brain_dist.judging.predictions import read_predictions
from brain_dist.ranks.world import discover
from brain_dist.store.dataset import open_dataset


@pytest.fixture(scope="module")
def run(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    batch = ["--train.global_batch", "24", "--train.micro_batch", "24", "--train.epochs", "2", "--optim.lr", "3e-3"]
    output = ["--data.shards", str(phantom_shards), "--run.dir", str(runs), "--run.name", "run"]
    verb("train", *TINY, *batch, *output, "--train.precision", "fp32", "--optim.ema", "0.5")
    return runs / "run"


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_sample_of_the_split_counts_once_on_any_number_of_ranks(
    run: Path, phantom_shards: Path, ranks: int
) -> None:
    # the split is not divisible by 5 images per rank, so there is padding to leave out
    launch(ranks, "evaluate", str(run), "--split", "train", "--batch", "5", "--name", f"ranks{ranks}")
    predictions = read_predictions(run / "predictions" / f"ranks{ranks}.parquet")
    dataset = open_dataset(phantom_shards)
    assert np.array_equal(predictions.row, dataset.rows("train"))
    assert np.array_equal(predictions.label, dataset.columns["label"][predictions.row])
    assert predictions.dataset_version == dataset.version
    np.testing.assert_allclose(predictions.prob.sum(1), 1, atol=1e-5)

    loaded = load_run(run)
    with torch.inference_mode():
        logits = loaded.model(loaded.images(predictions.row[:7].tolist())).numpy()
    np.testing.assert_allclose(predictions.logit[:7], logits, atol=1e-4)

    metrics = json.loads((run / "predictions" / f"ranks{ranks}.json").read_text())
    predicted = predictions.prob.argmax(1)
    assert metrics["n"] == len(dataset.rows("train"))
    assert metrics["accuracy"] == pytest.approx(accuracy_score(predictions.label, predicted))
    assert metrics["kappa"] == pytest.approx(cohen_kappa_score(predictions.label, predicted), abs=1e-6)
    assert metrics["f1_macro"] == pytest.approx(f1_score(predictions.label, predicted, average="macro"), abs=1e-6)
    assert metrics["auc_macro"] == pytest.approx(
        roc_auc_score(predictions.label, predictions.prob, multi_class="ovr"), abs=1e-5
    )


def test_the_moving_average_of_the_weights_is_evaluated(run: Path) -> None:
    ema, plain = load_run(run).model.state_dict(), load_run(run, weights="model").model.state_dict()
    assert any(not torch.equal(ema[name], plain[name]) for name in ema)


def test_images_can_be_displayed(run: Path) -> None:
    loaded = load_run(run)
    images = loaded.display(loaded.images([0, 1]))
    assert images.shape == (2, 32, 32)
    assert images.dtype == np.uint8
    assert images.std() > 10


def test_a_row_that_is_missing_or_occurs_twice_is_a_fault(run: Path) -> None:
    loaded, alone = load_run(run), discover({})
    rows = loaded.dataset.rows("test")
    with pytest.raises(Fault, match=f"instead of {len(rows) - 1}"):
        predict_logits(
            loaded.model, loaded.normalize, loaded.batches(rows, micro_batch=4, world=alone), rows[1:], alone
        )
    twice = np.concatenate([rows, rows[:1]])
    with pytest.raises(Fault, match=f"{len(rows)} distinct"):
        predict_logits(loaded.model, loaded.normalize, loaded.batches(twice, micro_batch=4, world=alone), rows, alone)


def copy_of(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_rebuilt_shards_are_refused(run: Path, tmp_path: Path) -> None:
    """Their split may have changed, so that training patients would be evaluated as unseen."""
    copy = copy_of(run, tmp_path)
    environment = json.loads((copy / "environment.json").read_text())
    (copy / "environment.json").write_text(json.dumps(environment | {"dataset_version": "0" * 64}))
    with pytest.raises(UserError, match="was rebuilt since"):
        load_run(copy)


def test_damaged_weights_are_refused(run: Path, tmp_path: Path) -> None:
    copy = copy_of(run, tmp_path)
    file = sorted((copy / "checkpoints").iterdir())[-1] / "ema.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(Fault, match=r"ema\.safetensors does not match its checksum"):
        load_run(copy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "absent"),
        (["RUN", "--step", "7"], "no checkpoint of step 7"),
        (["RUN", "--shards", "x"], "--shards needs a --name"),
        (["RUN", "--shards", "absent", "--name", "x"], "absent"),
        (["RUN", "--shards", "x", "--name", "test"], "--shards needs a --name other than train, val and test"),
        (["RUN", "--step", "seven"], "--step seven: must be a number"),
        (["RUN", "--batch", "0"], "--batch 0: must be ≥ 1"),
    ],
)
def test_mistakes_are_one_line(run: Path, arguments: list[str], message: str) -> None:
    result = verb("evaluate", *(str(run) if argument == "RUN" else argument for argument in arguments), expect=2)
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1
