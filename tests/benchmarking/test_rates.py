"""`brain-dist benchmark run --rates`: which learning rate is chosen, and what the table says of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, in_process

from brain_dist.benchmarking.folder import Folder
from brain_dist.benchmarking.grid import Source, plan
from brain_dist.benchmarking.rates import (
    best_rates,
    candidate,
    parse_rates,
    plan_trials,
    rates_sentence,
    read_trials,
    run_trials,
    trials_text,
)
from brain_dist.benchmarking.trainings import training_commands
from brain_dist.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from brain_dist.errors import Fault, UserError
from brain_dist.judging.evaluation import write_evaluation
from brain_dist.judging.metrics import evaluate_predictions
from brain_dist.judging.predictions import predictions_from_logits, read_predictions
from brain_dist.ranks.world import discover
from brain_dist.store.dataset import open_dataset
from brain_dist.stream.batch import Batch
from brain_dist.training.nonfinite import SkippedSteps, raise_nonfinite


def config(model: str, best: str = "f1_macro") -> Config:
    return Config(
        run=RunConfig(device="cpu"),
        data=DataConfig(shards="s"),
        model=ModelConfig(name=model),
        optim=OptimConfig(lr=1e-4),
        train=TrainConfig(precision="fp32", best=best),  # type: ignore[arg-type]
    )


VARIANTS = {"a": config("resnet18"), "b": config("resnet34")}
SOURCE = Source("phantom", "0" * 64, ("glioma", "notumor"), DataConfig(shards="s"))


def test_a_trial_is_the_cell_that_its_rate_would_have(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    rates = parse_rates("1e-2,1e-3", VARIANTS, [], None)
    assert rates == [1e-3, 1e-2]
    trials = plan_trials(VARIANTS, rates, 5, SOURCE, folder, 2)
    assert [cell.model for cell in trials.cells] == ["a at 0.001", "a at 0.01", "b at 0.001", "b at 0.01"]
    train, evaluate = training_commands(trials.cells[0], folder)
    assert train[0] == "train"
    assert evaluate[2:] == ["--split", "val", "--batch", "32", "--device", "cpu", "--name", "val"]
    chosen = {name: dataclasses.replace(each, optim=OptimConfig(lr=1e-2)) for name, each in VARIANTS.items()}
    cells = plan(chosen, [5, 6], None, [SOURCE], tmp_path, 2).cells
    keys = {cell.model: cell.key for cell in trials.cells}
    assert [cell.key in keys.values() for cell in cells] == [True, True, False, False]
    assert cells[0].key == keys[candidate("a", 1e-2)]


def test_the_best_rate_wins_and_of_equal_ones_the_lowest(capsys: pytest.CaptureFixture[str]) -> None:
    trials = {"a": {1e-3: 0.9, 1e-2: 0.95, 1e-1: 0.95}, "b": {1e-3: None, 1e-2: 0.1, 1e-1: 0.2}}
    chosen = best_rates(trials, VARIANTS)
    assert {name: each.optim.lr for name, each in chosen.items()} == {"a": 1e-2, "b": 1e-1}
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "a: learning rate 0.01, by 0.001: 0.900, 0.01: 0.950, 0.1: 0.950"
    assert lines[1].endswith(
        "0.001: –, 0.01: 0.100, 0.1: 0.200; at the end of the list: a rate beyond it may be better"
    )
    loss = {name: config(each.model.name, "loss") for name, each in VARIANTS.items()}
    assert best_rates(trials, loss)["a"].optim.lr == 1e-3
    assert best_rates(trials, loss)["b"].optim.lr == 1e-2
    with pytest.raises(UserError, match="b: no learning rate has a f1_macro on the validation split"):
        best_rates({**trials, "b": {1e-3: None, 1e-2: None}}, VARIANTS)


def test_a_rate_that_diverges_is_a_result(phantom_shards: Path, tmp_path: Path) -> None:
    """Its training leaves the images of its last step behind, and is not repeated."""
    dataset = open_dataset(phantom_shards)
    source = Source(dataset.name, dataset.version, dataset.classes, DataConfig(shards=str(phantom_shards)))
    variants, folder = {"a": config("test_convnext")}, Folder(tmp_path)
    grid = plan_trials(variants, [1e-3, 1e-1], 0, source, folder, 1)
    low, high = grid.cells
    rows = dataset.rows("val")
    logits = np.eye(len(dataset.classes))[dataset.columns["label"][rows]]
    table = predictions_from_logits(dataset, rows, logits, run=low.key, step=1)
    write_evaluation(folder.predictions(low.key, "val"), table, rows)
    run = folder.run(high.key)
    run.mkdir()
    image, zero = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    batch = Batch(image, zero, zero, zero == 0, weight=torch.ones(2), micro=0)
    with pytest.raises(Fault, match="was not finite in 20 steps in a row"):
        raise_nonfinite(run, 25, SkippedSteps(20, 20), [batch], dataset.columns["key"], discover({}))
    assert run_trials(grid, folder, "brain-dist benchmark run", slurm=False) is None
    assert not (tmp_path / "cells" / f"{high.key}.log").exists()  # nothing was started
    trials = read_trials(grid, variants, [1e-3, 1e-1], folder)
    assert trials == {"a": {1e-3: 1.0, 1e-1: None}}
    assert best_rates(trials, variants)["a"].optim.lr == 1e-3


def test_sentences() -> None:
    record = {
        "learning_rates": {"a": 1e-2, "b": 1e-1},
        "learning_rate_trials": {"a": {"0.001": 0.9, "0.01": 1, "0.1": 0.9}, "b": {"0.001": 0.1, "0.01": 0, "0.1": 1}},
        "common": {"train.best": "f1_macro"},
    }
    assert rates_sentence(record) == (
        "The learning rate of each model is the best of 3 by f1_macro on validation images, each tried in one training."
        " At the end of the list, so a rate beyond may be better: b."
    )
    assert "declared for each model" in rates_sentence({**record, "learning_rate_trials": None})
    same = {"learning_rates": {"a": 0.1, "b": 0.1}, "learning_rate_trials": None}
    assert rates_sentence(same).startswith("All models have the learning rate 0.1:")
    assert trials_text({0.1: None, 0.001: 0.91234}) == "0.001: 0.912, 0.1: –"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_trials_choose_and_are_not_repeated(phantom_shards: Path, tmp_path: Path) -> None:
    options = [
        "--models", "test_convnext", "--seeds", "0", "--data.shards", str(phantom_shards), *TINY[2:], "--run.device",
        "cpu", "--train.precision", "fp32", "--train.zero_stage", "0", "--train.epochs", "4", "--train.global_batch",
        "16", "--train.micro_batch", "8", "--train.best", "f1_macro", "--rates", "1e-9,1e-3",
    ]  # fmt: skip
    printed = in_process("benchmark", "run", str(tmp_path), *options)
    assert "learning rates: 2 trials, 2 of them to run" in printed.err
    record = json.loads((tmp_path / "benchmark.json").read_text())
    assert record["learning_rates"] == {"test_convnext": 1e-3}
    (cell,) = (each["cell"] for each in record["cells"])
    trained = [each["cell"] for each in json.loads((tmp_path / "rates.json").read_text())["cells"]]
    assert cell in trained
    folder = Folder(tmp_path)
    tables = {key: read_predictions(folder.predictions(key, "val")) for key in trained}
    assert {split for table in tables.values() for split in table.split} == {"val"}
    f1 = {key: evaluate_predictions(each.label, each.prob, each.classes)["f1_macro"] for key, each in tables.items()}
    assert max(f1, key=f1.__getitem__) == cell
    assert not any(folder.predictions(key).exists() for key in trained if key != cell)
    assert "- The learning rate of each model is the best of 2 by f1_macro" in (tmp_path / "table.md").read_text()
    again = in_process("benchmark", "run", str(tmp_path), *options)
    assert "learning rates: 2 trials, 0 of them to run" in again.err
    assert "1 cells, 1 of them finished" in again.err
    page = in_process("benchmark", "page", str(tmp_path))
    assert page.err == ""
    assert "Tried: f1_macro on validation" in (tmp_path / "index.html").read_text()
