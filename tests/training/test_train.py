"""The real `train` entry point over real processes: every ZeRO stage, every launcher, stopped and resumed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, Done, children, command, in_process, interrupt, launch, losses, read_metrics, verb
from safetensors.torch import load_file

from brain_dist.checkpoints.layout import complete_steps

BATCH = ["--train.global_batch", "24", "--train.micro_batch", "4", "--optim.lr", "1e-3"]


def arguments(shards: Path, runs: Path, name: str, *more: str) -> list[str]:
    where = ["--data.shards", str(shards), "--run.dir", str(runs), "--run.name", name]
    return [*TINY, *BATCH, "--train.epochs", "2", "--train.precision", "fp32", *where, *more]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(phantom_shards: Path, runs: Path) -> Path:
    """The undisturbed run on one process, which the others are compared with."""
    verb("train", *arguments(phantom_shards, runs, "alone", "--train.zero_stage", "0"))
    return runs / "alone"


def test_a_run_leaves_what_it_promises(alone: Path) -> None:
    rows = read_metrics(alone / "metrics.jsonl")
    train = [row for row in rows if row["kind"] == "train"]
    assert {"step", "epoch", "loss", "lr", "grad_norm", "images_per_s", "time"} <= set(train[0])
    assert [row["epoch"] for row in rows if row["kind"] == "eval"] == [1.0, 2.0]
    facts = json.loads((alone / "environment.json").read_text())
    assert facts["world_size"] == 1
    assert facts["parameters"] > 1e5
    assert facts["versions"]["torch"]
    assert "WANDB" not in (alone / "environment.json").read_text()
    newest = sorted((alone / "checkpoints").iterdir())[-1]
    optimizer = "optimizer-00000-of-00001.safetensors"
    assert {p.name for p in newest.iterdir()} == {"COMPLETE", "model.safetensors", optimizer}
    assert losses(alone)[-1] < losses(alone)[0]


@pytest.mark.parametrize(
    ("stage", "start"),
    [
        (0, ["launch/local.py", "-n", "2", "train"]),
        (1, ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "brain_dist.train"]),
        (
            2,
            [
                "-m",
                "deepspeed.launcher.launch",
                "--world_info=eyJsb2NhbGhvc3QiOiBbMCwgMV19",
                "--module",
                "brain_dist.train",
            ],
        ),
        (3, ["launch/local.py", "-n", "2", "train"]),
    ],
    ids=["zero0-local", "zero1-torchrun", "zero2-deepspeed", "zero3-local"],
)
def test_two_processes_at_each_zero_stage_train_as_one_does(
    phantom_shards: Path, runs: Path, alone: Path, stage: int, start: list[str]
) -> None:
    name = f"zero{stage}"
    settings = f"configs/deepspeed/zero{stage}.json"
    if (
        stage == 3
    ):  # the threshold below which weights stay whole would keep all of a tiny network out of ZeRO-3's hands
        made = json.loads(Path(settings).read_text())
        made["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        settings = str(runs / "zero3.json")
        Path(settings).write_text(json.dumps(made))
    words = arguments(phantom_shards, runs, name, "--train.zero_stage", str(stage), "--train.deepspeed", settings)
    command([sys.executable, *start, *words], DS_ACCELERATOR="cpu")
    # other ranks, other accumulation, another way of summing: the same samples, so the same losses to rounding
    assert losses(runs / name) == pytest.approx(losses(alone), rel=2e-3)
    ours, theirs = (
        load_file(sorted((r / "checkpoints").iterdir())[-1] / "model.safetensors") for r in (runs / name, alone)
    )
    assert set(ours) == set(theirs)
    for key, value in ours.items():
        assert value.shape == theirs[key].shape
        assert (value - theirs[key]).abs().max() < 5e-3


# Everything that could break an exact resume is on: dropped paths, mixing, erasing, averaging, autocast, two ranks.
EXACT = [
    *("--train.precision", "amp", "--train.zero_stage", "2", "--model.drop_path", "0.2", "--augment.mixup", "0.4"),
    *("--augment.cutmix", "1.0", "--augment.erase", "0.5", "--optim.ema", "0.9", "--train.epochs", "4"),
]


@pytest.fixture(scope="module")
def undisturbed(phantom_shards: Path, runs: Path) -> Path:
    launch(2, "train", *arguments(phantom_shards, runs, "undisturbed", *EXACT))
    return runs / "undisturbed"


def test_stopped_in_the_middle_of_an_epoch_and_resumed_is_bit_for_bit_the_same(
    phantom_shards: Path, runs: Path, undisturbed: Path
) -> None:
    words = arguments(phantom_shards, runs, "stopped", *EXACT)
    metrics = runs / "stopped" / "metrics.jsonl"
    inside = {"rank": 1, "place": "step", "count": 8, "action": "SIGTERM"}
    stopped = launch(2, "train", *words, expect=75, inside=inside)
    assert "the same command goes on from there" in stopped.err
    total, reached = len(losses(undisturbed)), len(losses(runs / "stopped"))
    assert (reached, total) == (8, 20)
    assert reached % round(1 / read_metrics(metrics)[0]["epoch"]), "stopped inside an epoch"

    resumed = launch(2, "train", *words)
    assert f"resuming at step {reached} of {total}" in resumed.err
    assert losses(runs / "stopped") == losses(undisturbed)
    for name in ("model.safetensors", "ema.safetensors"):
        ours, theirs = (r / "checkpoints" / f"{total:08d}" / name for r in (runs / "stopped", undisturbed))
        assert ours.read_bytes() == theirs.read_bytes()

    again = launch(2, "train", *words)
    assert "is trained to its end" in again.err


def test_bf16_and_averaged_batchnorm_statistics_over_two_ranks(phantom_shards: Path, runs: Path) -> None:
    launch(2, "train", *arguments(phantom_shards, runs, "bf16", "--train.precision", "bf16", "--optim.ema", "0.5"))
    assert losses(runs / "bf16")[-1] < losses(runs / "bf16")[0]

    words = arguments(phantom_shards, runs, "bn", "--model.name", "test_efficientnet", "--optim.ema", "0.5")
    done = launch(2, "train", *words, "--train.precision", "amp")
    told = [row for row in read_metrics(runs / "bn" / "metrics.jsonl") if row["kind"] == "eval"][-1]
    # judged alone from the file, the network is the one that both ranks judged together: their statistics agreed
    launch(1, "evaluate", str(runs / "bn"), "--split", "val")
    said = json.loads((runs / "bn" / "predictions" / "val.json").read_text())
    assert said["nll"] == pytest.approx(told["loss"], abs=0.02), done.err


def test_a_signal_to_one_rank_alone_stops_all(phantom_shards: Path, runs: Path) -> None:
    words = arguments(phantom_shards, runs, "one-rank", "--train.epochs", "50")

    def signal_second_rank(process: subprocess.Popen[str]) -> None:
        _, second = children(process.pid)
        os.kill(second, signal.SIGUSR1)

    done = interrupt(2, words, lambda: len(losses(runs / "one-rank")) > 3, send=signal_second_rank)
    assert done.code == 75, done.err


def test_after_a_killed_rank_the_launcher_starts_anew_and_the_end_is_the_same(
    phantom_shards: Path, runs: Path, undisturbed: Path
) -> None:
    def kill_second_rank(process: subprocess.Popen[str]) -> None:
        _, second = children(process.pid)
        os.kill(second, signal.SIGKILL)

    words = arguments(phantom_shards, runs, "restarted", *EXACT)
    saved = runs / "restarted" / "checkpoints"
    done = interrupt(2, words, lambda: bool(complete_steps(saved)), send=kill_second_rank, options=["--restarts", "1"])
    assert done.code == 0, done.err
    assert "process 1 was ended by SIGKILL" in done.err
    assert "starting all 2 processes anew, 0 times left" in done.err
    assert re.search(r"resuming at step (5|10|15) of 20", done.err), done.err  # the last epoch's end before the kill
    assert losses(runs / "restarted") == losses(undisturbed)


def resume_with(runs: Path, source: Path, name: str, words: list[str], processes: int = 2) -> Done:
    shutil.copytree(source, runs / name)
    return launch(processes, "train", *words, expect=None)


def test_a_resume_that_would_be_another_run_is_refused(phantom_shards: Path, runs: Path, undisturbed: Path) -> None:
    words = arguments(phantom_shards, runs, "other", *EXACT, "--optim.lr", "5e-4")
    done = resume_with(runs, undisturbed, "other", words)
    assert done.code == 2
    assert "with optim.lr=0.001, now it is 0.0005" in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    phantom_shards: Path, runs: Path, undisturbed: Path
) -> None:
    shutil.copytree(undisturbed, runs / "damaged")
    newest = sorted((runs / "damaged" / "checkpoints").iterdir())[-1]
    victim = next(newest.glob("optimizer-*"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    done = launch(2, "train", *arguments(phantom_shards, runs, "damaged", *EXACT))
    assert "is damaged and skipped" in done.err
    assert victim.name in done.err
    assert losses(runs / "damaged") == losses(undisturbed)


def test_shards_that_are_not_whole_are_told_before_the_first_step(phantom_shards: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(phantom_shards, shards)
    shard = next(shards.glob("*-train-*.tar"))
    whole = shard.read_bytes()
    for damage, says in (
        (lambda: shard.write_bytes(whole[: len(whole) // 2]), f"has {len(whole) // 2:,} bytes and needs "),
        (shard.unlink, "cannot be used (No such file or directory); copy or build it again"),
    ):
        damage()
        done = in_process("train", *arguments(shards, tmp_path, "short"), expect=2)
        assert f"{shard} {says}" in done.err
        assert not (tmp_path / "short").exists()


def test_too_many_ranks_for_the_batch_is_one_line(phantom_shards: Path, runs: Path) -> None:
    done = launch(2, "train", *arguments(phantom_shards, runs, "odd", "--train.global_batch", "21"), expect=2)
    assert "train.global_batch=21 is not train.micro_batch=4 × 2 ranks" in done.err
    assert len(done.err.strip().splitlines()) == 1
