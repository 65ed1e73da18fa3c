"""The commands of a cell, and how far its training is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from brain_dist.benchmarking import grid  # its class Test would be collected
from brain_dist.benchmarking.folder import Folder
from brain_dist.benchmarking.trainings import epochs_text, training_commands
from brain_dist.config import Config, DataConfig, RunConfig, TrainConfig

TRAIN = TrainConfig(precision="fp32", best="f1_macro", epochs=12)
CONFIG = Config(run=RunConfig(device="cpu"), data=DataConfig(shards="s"), train=TRAIN)
CELL = grid.Cell("key", "net", 0, None, "phantom", CONFIG)


def test_the_selected_checkpoint_is_evaluated_and_finished_evaluations_stay(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    options = ["--split", "test", "--batch", "32", "--device", "cpu"]
    train, evaluate = training_commands(CELL, folder)
    assert train == ["train", "--config", f"{tmp_path}/cells/key.yaml"]
    assert evaluate == ["evaluate", f"{tmp_path}/cells/key", *options]
    newest = dataclasses.replace(CELL, config=dataclasses.replace(CONFIG, train=TrainConfig(precision="fp32")))
    assert training_commands(newest, folder)[1] == ["evaluate", f"{tmp_path}/cells/key", *options]

    several = dataclasses.replace(newest, tests=(grid.Test(), grid.Test("other", "shards/other")))
    folder.predictions("key").parent.mkdir(parents=True)
    folder.predictions("key").with_suffix(".json").touch()
    folder.predictions("key").touch()
    assert folder.is_finished(newest)
    assert not folder.is_finished(several)
    assert [words[-4:] for words in training_commands(several, folder)[1:]] == [
        ["--shards", "shards/other", "--name", "other"]
    ]
    twice = dataclasses.replace(newest, tests=(*grid.OWN_TEST, grid.Test(grid.PUBLISHED, allow_known=True)))
    assert [words[2:] for words in training_commands(twice, folder)[1:]] == [
        [*options, "--allow-known", "--name", "published"]
    ]


@pytest.mark.parametrize("filling", [10, 100_000])
def test_progress_is_that_of_the_last_complete_row(tmp_path: Path, filling: int) -> None:
    assert epochs_text(CELL, Folder(tmp_path)) == ""
    log = Folder(tmp_path).run("key") / "metrics.jsonl"
    log.parent.mkdir(parents=True)
    steps = [{"kind": "train", "step": step, "epoch": step / 10, "loss": "x" * (filling // 25)} for step in range(26)]
    evaluation = {"kind": "eval", "step": 26, "epoch": 2.6}
    log.write_text("".join(json.dumps(row) + "\n" for row in [*steps, evaluation]) + '{"kind": "train", "epoch": 9')
    assert epochs_text(CELL, Folder(tmp_path)) == "epoch 2.5 of 12"
    log.write_text('{"kind": "tr')
    assert epochs_text(CELL, Folder(tmp_path)) == ""
