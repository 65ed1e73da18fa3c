"""Evaluation: exact over any number of ranks, and readable by whoever judges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, launch, verb
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
    where = ["--data.shards", str(phantom_shards), "--run.dir", str(runs), "--run.name", "run"]
    verb("train", *TINY, *batch, *where, "--train.precision", "fp32", "--optim.ema", "0.5")
    return runs / "run"


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_sample_of_the_split_counts_once_on_any_number_of_ranks(
    run: Path, phantom_shards: Path, ranks: int
) -> None:
    # 5 a rank divides neither the split nor anything else: every rank has padding to leave out
    launch(ranks, "evaluate", str(run), "--split", "train", "--batch", "5", "--name", f"ranks{ranks}")
    found = read_predictions(run / "predictions" / f"ranks{ranks}.parquet")
    dataset = open_dataset(phantom_shards)
    assert np.array_equal(found.row, dataset.rows("train"))
    assert np.array_equal(found.label, dataset.columns["label"][found.row])
    assert found.dataset_version == dataset.version
    np.testing.assert_allclose(found.prob.sum(1), 1, atol=1e-5)

    loaded = load_run(run)
    with torch.inference_mode():
        alone = loaded.model(loaded.images(found.row[:7].tolist())).numpy()
    np.testing.assert_allclose(found.logit[:7], alone, atol=1e-4)

    said = json.loads((run / "predictions" / f"ranks{ranks}.json").read_text())
    predicted = found.prob.argmax(1)
    assert said["n"] == len(dataset.rows("train"))
    assert said["accuracy"] == pytest.approx(accuracy_score(found.label, predicted))
    assert said["kappa"] == pytest.approx(cohen_kappa_score(found.label, predicted), abs=1e-6)
    assert said["f1_macro"] == pytest.approx(f1_score(found.label, predicted, average="macro"), abs=1e-6)
    assert said["auc_macro"] == pytest.approx(roc_auc_score(found.label, found.prob, multi_class="ovr"), abs=1e-5)


def test_the_average_of_the_weights_is_what_is_judged(run: Path) -> None:
    ema, plain = load_run(run).model.state_dict(), load_run(run, weights="model").model.state_dict()
    assert any(not torch.equal(ema[name], plain[name]) for name in ema)


def test_the_picture_can_be_shown_again(run: Path) -> None:
    loaded = load_run(run)
    shown = loaded.display(loaded.images([0, 1]))
    assert shown.shape == (2, 32, 32)
    assert shown.dtype == np.uint8
    assert shown.std() > 10


def test_a_row_that_comes_twice_or_not_at_all_is_a_fault(run: Path) -> None:
    loaded, alone = load_run(run), discover({})
    rows = loaded.dataset.rows("test")
    with pytest.raises(Fault, match=f"instead of {len(rows) - 1}"):
        predict_logits(
            loaded.model, loaded.normalize, loaded.batches(rows, micro_batch=4, world=alone), rows[1:], alone
        )
    twice = np.concatenate([rows, rows[:1]])
    with pytest.raises(Fault, match=f"{len(rows)} different"):
        predict_logits(loaded.model, loaded.normalize, loaded.batches(twice, micro_batch=4, world=alone), rows, alone)


def copied(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_shards_that_were_rebuilt_under_the_run_are_refused(run: Path, tmp_path: Path) -> None:
    """Their split may be another one: training patients would be judged as unseen."""
    again = copied(run, tmp_path)
    facts = json.loads((again / "environment.json").read_text())
    (again / "environment.json").write_text(json.dumps(facts | {"dataset_version": "0" * 64}))
    with pytest.raises(UserError, match="was rebuilt since"):
        load_run(again)


def test_damaged_weights_are_not_judged(run: Path, tmp_path: Path) -> None:
    again = copied(run, tmp_path)
    file = sorted((again / "checkpoints").iterdir())[-1] / "ema.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(Fault, match=r"ema\.safetensors does not match its checksum"):
        load_run(again)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["absent"], "absent"),
        (["RUN", "--step", "7"], "no checkpoint of step 7"),
        (["RUN", "--shards", "x"], "--shards needs a --name"),
        (["RUN", "--shards", "absent", "--name", "x"], "absent"),
        (["RUN", "--shards", "x", "--name", "test"], "--shards needs a --name of its own"),
        (["RUN", "--batch", "0"], "needs at least 1"),
    ],
)
def test_mistakes_are_one_line(run: Path, words: list[str], says: str) -> None:
    done = verb("evaluate", *(str(run) if word == "RUN" else word for word in words), expect=2)
    assert says in done.err
    assert len(done.err.strip().splitlines()) == 1
