"""The commands `train` and `evaluate` on a GPU if there is one, else on the CPU."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, command, losses

from brain_dist.checkpoints.layout import checkpoint_folder, complete_steps
from brain_dist.inference.run import load_run
from brain_dist.judging.predictions import read_predictions

pytestmark = pytest.mark.slow  # on the CPU, other tests show most of it

# What could break an exact resume: dropped paths, mixing, erasing, EMA, accumulation
SETTINGS = [
    *("--train.global_batch", "24", "--train.micro_batch", "12", "--train.epochs", "2", "--optim.lr", "1e-3"),
    *("--train.precision", "bf16", "--train.zero_stage", "2", "--model.drop_path", "0.2", "--augment.mixup", "0.4"),
    *("--augment.cutmix", "1.0", "--augment.erase", "0.5", "--optim.ema", "0.9", "--run.deterministic", "true"),
]


def verb_on(device: torch.device, name: str, *arguments: str) -> str:
    """What a command prints that sees the GPU, if there is one."""
    visible = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")} if device.type == "cuda" else {}
    return command([sys.executable, "-m", f"brain_dist.{name}", *arguments], **visible).err


def train(device: torch.device, shards: Path, run: Path) -> str:
    paths = ["--data.shards", str(shards), "--run.dir", str(run.parent), "--run.name", run.name]
    return verb_on(device, "train", *TINY, *SETTINGS, "--run.device", device.type, *paths)


@pytest.fixture(scope="module")
def run(device: torch.device, phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    output = train(device, phantom_shards, run)
    assert f"1 × {device.type}" in output
    assert losses(run)[-1] < losses(run)[0]
    return run


def test_a_run_that_lost_its_last_checkpoint_gives_the_same_bits(
    run: Path, device: torch.device, phantom_shards: Path
) -> None:
    resumed = run.with_name("resumed")
    shutil.copytree(run, resumed)
    first, last = complete_steps(run / "checkpoints")
    shutil.rmtree(checkpoint_folder(resumed / "checkpoints", last))
    assert f"resuming at step {first} of {last}" in train(device, phantom_shards, resumed)
    assert losses(resumed) == losses(run)
    for name in ("model.safetensors", "ema.safetensors"):
        content, expected = (
            (checkpoint_folder(path / "checkpoints", last) / name).read_bytes() for path in (resumed, run)
        )
        assert content == expected


@pytest.mark.parametrize("loader", ["dali", "opencv"])
def test_evaluation_agrees_with_the_cpu(run: Path, device: torch.device, loader: str) -> None:
    options = ["--device", device.type, "--loader", loader, "--name", loader]
    verb_on(device, "evaluate", str(run), *options)
    predictions = read_predictions(run / "predictions" / f"{loader}.parquet")
    reference = load_run(run, loader="opencv", device="cpu").predict("test")
    assert np.array_equal(predictions.row, reference.row)
    np.testing.assert_allclose(predictions.logit, reference.logit, atol=0.05)  # the loaders round differently
    assert np.ptp(reference.logit) > 0.1, "the network does not ignore its input"
