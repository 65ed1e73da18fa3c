"""Every command answers a mistake in its options with one line that helps; nothing may be abbreviated."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import command

VERBS = {
    "train": "--data.shards",
    "evaluate": "--split",
    "predict": "--slices",
    "outliers": "--method",
    "export": "--step",
    "report": "--name",
    "shortcut": "--json",
    "profile": "--steps",
    "scaling run": "--nodes",
    "scaling predict": "--nodes",
    "sync": "--dry-run",
    "shard build": "--split",
    "shard join": "--out",
    "shard verify": "--workers",
    "shard audit": "--out",
    "shard phantom": "--patients",
}
LAUNCHERS = {"launch/local.py": "--restarts", "launch/hosts.py": "--port"}
COMMANDS = {f"-m brain_dist {verb}": option for verb, option in VERBS.items()} | LAUNCHERS
REQUIRED = {
    "-m brain_dist scaling run": "--out x",
    "-m brain_dist scaling predict": "x --machine y",
    "-m brain_dist predict": "x y",
    "-m brain_dist export": "x --to hf --out y",
    "launch/local.py": "train",
    "launch/hosts.py": "x train",
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("mistake", ["abbreviated", "swapped letters"])
def test_an_unknown_option_is_one_line_with_the_nearest_one(name: str, mistake: str) -> None:
    option = COMMANDS[name]
    wrong = option[:-1] if mistake == "abbreviated" else option[:-3] + option[-2] + option[-3] + option[-1]
    required = REQUIRED.get(name, "").split()
    arguments = [wrong, *required] if name in LAUNCHERS else [*required, wrong, "x"]
    result = command([sys.executable, *name.split(), *arguments], expect=2)
    assert result.err.startswith(f"brain-dist: error: unknown option {wrong} (did you mean {option}?); ")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-m brain_dist evalute x", "unknown command 'evalute' (did you mean evaluate?); choose from shard, train"),
        ("-m brain_dist shard biuld", "command: invalid choice: 'biuld' (did you mean build?); choose from build"),
        ("launch/local.py -n 1 trian", "VERB: invalid choice: 'trian' (did you mean train?); choose from"),
        ("-m brain_dist evaluate x --device gpu", "--device: invalid choice: 'gpu'; choose from auto, cpu, cuda; "),
        ("-m brain_dist profile --steps few", "--steps few: must be an integer; "),
        ("-m brain_dist shard verify x --workers 1.5", "--workers 1.5: must be an integer; "),
        ("-m brain_dist shard verify x y", "unexpected argument y; "),
        ("-m brain_dist shard build", "the following arguments are required: --source, --out; "),
        ("-m brain_dist train --data.std 1", "data.std=1: must be a list of 3 numbers; "),
        ("-m brain_dist train --optim.betas [.9,x]", "optim.betas=x: must be a list of 2 numbers; "),
        ("-m brain_dist train --lr 1", "unknown option --lr (did you mean --optim.lr?); "),
        ("-m brain_dist train --train.best loss2", "train.best=loss2: must be one of loss, accuracy, "),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line_in_words(words: str, message: str) -> None:
    result = command([sys.executable, *words.split()], expect=2)
    assert result.err.startswith(f"brain-dist: error: {message}")
    assert result.err.count("\n") == 1
    assert not {"class", "typing", "Literal", "tuple", "NoneType", "Union"} & set(result.err.replace("'", " ").split())


def test_a_network_that_does_not_exist_suggests_the_nearest(phantom_shards: Path, tmp_path: Path) -> None:
    words = ["--data.shards", str(phantom_shards), "--run.dir", str(tmp_path), "--model.name", "resnet5"]
    result = command([sys.executable, "-m", "brain_dist", "train", *words], expect=2)
    assert "model.name=resnet5: timm has no such model (did you mean resnet50?)" in result.err
