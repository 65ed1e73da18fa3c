"""The `train` command in real processes: every ZeRO stage, every launcher, stopped and resumed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import TINY, children, command, in_process, interrupt, launch, losses, read_metrics, verb
from safetensors.torch import load_file

import brain_dist
from brain_dist.checkpoints.layout import complete_steps
from brain_dist.common.locks import take_lock

BATCH = ["--train.global_batch", "24", "--train.micro_batch", "4", "--optim.lr", "1e-3"]


def arguments(shards: Path, runs: Path, name: str, *more: str) -> list[str]:
    paths = ["--data.shards", str(shards), "--run.dir", str(runs), "--run.name", name]
    return [*TINY, *BATCH, "--train.epochs", "2", "--train.precision", "fp32", *paths, *more]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def single(phantom_shards: Path, runs: Path) -> Path:
    """An uninterrupted run in one process, the reference for runs in two; a compiler that is called leaves a file."""
    compiler = runs / "cc"
    compiler.write_text(f"#!/bin/sh\necho $* >> {runs / 'compiled'}\nexit 1\n")
    compiler.chmod(0o755)
    compilers = dict.fromkeys(("CC", "CXX", "LDSHARED"), str(compiler))
    verb("train", *arguments(phantom_shards, runs, "single", "--train.zero_stage", "0"), **compilers)
    return runs / "single"


def newest_checkpoint(run: Path) -> Path:
    return sorted((run / "checkpoints").iterdir())[-1]


def test_run_folder_is_complete(single: Path) -> None:
    rows = read_metrics(single / "metrics.jsonl")
    train = [row for row in rows if row["kind"] == "train"]
    assert {"step", "epoch", "loss", "lr", "grad_norm", "images_per_s", "time"} <= set(train[0])
    assert [row["epoch"] for row in rows if row["kind"] == "eval"] == [1.0, 2.0]
    environment = json.loads((single / "environment.json").read_text())
    assert environment["world_size"] == 1
    assert environment["parameters"] > 1e5
    assert environment["versions"]["torch"]
    assert "WANDB" not in (single / "environment.json").read_text()
    files = {file.name for file in newest_checkpoint(single).iterdir()}
    assert files == {"COMPLETE", "model.safetensors", "optimizer-00000-of-00001.safetensors"}
    assert losses(single)[-1] < losses(single)[0]


def test_an_option_that_timm_ignores_is_named_when_a_training_starts_but_not_in_use(
    phantom_shards: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--model.options", "{ls_init_value: null}", "--train.epochs", "1", "--train.micro_batch", "24"]
    result = verb("train", *arguments(phantom_shards, runs, "null", *more))
    line = "brain-dist: model.options: timm ignores ls_init_value, which is null; leave it out\n"
    assert result.err.count(line) == 1
    assert brain_dist.load(runs / "null").contract.size == 32
    assert "timm ignores" not in capsys.readouterr().err


def test_no_compiler_is_called(single: Path, runs: Path) -> None:
    """DeepSpeed would redirect standard error while it looks for a compiler, and an error message would be lost."""
    assert not (runs / "compiled").exists(), (runs / "compiled").read_text()


DEEPSPEED = ["-m", "deepspeed.launcher.launch", "--world_info=eyJsb2NhbGhvc3QiOiBbMCwgMV19", "--module"]


@pytest.mark.parametrize(
    ("zero_stage", "launcher"),
    [
        pytest.param(0, ["launch/local.py", "-n", "2", "train"], marks=pytest.mark.slow),
        pytest.param(
            1,
            ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "brain_dist.train"],
            marks=pytest.mark.slow,
        ),
        (2, [*DEEPSPEED, "brain_dist.train"]),
        pytest.param(3, ["launch/local.py", "-n", "2", "train"], marks=pytest.mark.slow),
    ],
    ids=["zero0-local", "zero1-torchrun", "zero2-deepspeed", "zero3-local"],
)
def test_two_processes_train_as_one_at_each_zero_stage(
    phantom_shards: Path, runs: Path, single: Path, zero_stage: int, launcher: list[str]
) -> None:
    run = runs / f"zero{zero_stage}"
    settings = f"configs/deepspeed/zero{zero_stage}.json"
    if zero_stage == 3:  # the default threshold would leave all weights of a tiny network unsharded
        content = json.loads(Path(settings).read_text())
        content["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        settings = str(runs / "zero3.json")
        Path(settings).write_text(json.dumps(content))
    stage = ["--train.zero_stage", str(zero_stage), "--train.deepspeed", settings]
    command([sys.executable, *launcher, *arguments(phantom_shards, runs, run.name, *stage)], DS_ACCELERATOR="cpu")
    # the same samples summed in another order: losses are equal up to rounding
    assert losses(run) == pytest.approx(losses(single), rel=2e-3)
    weights, expected = (load_file(newest_checkpoint(path) / "model.safetensors") for path in (run, single))
    assert set(weights) == set(expected)
    for name, value in weights.items():
        assert value.shape == expected[name].shape
        assert (value - expected[name]).abs().max() < 5e-3


# Everything that could break an exact resume: dropped paths, mixing, erasing, EMA, autocast, two ranks
EXACT = [
    *("--train.precision", "amp", "--train.zero_stage", "2", "--model.drop_path", "0.2", "--augment.mixup", "0.4"),
    *("--augment.cutmix", "1.0", "--augment.erase", "0.5", "--optim.ema", "0.9", "--train.epochs", "4"),
]


@pytest.fixture(scope="module")
def uninterrupted(phantom_shards: Path, runs: Path) -> Path:
    launch(2, "train", *arguments(phantom_shards, runs, "uninterrupted", *EXACT))
    return runs / "uninterrupted"


def test_stop_inside_an_epoch_and_resume_is_bit_for_bit_exact(
    phantom_shards: Path, runs: Path, uninterrupted: Path
) -> None:
    run = runs / "stopped"
    command_line = arguments(phantom_shards, runs, run.name, *EXACT)
    fault = {"rank": 1, "place": "step", "count": 8, "action": "SIGTERM"}
    stopped = launch(2, "train", *command_line, expect=75, inject=fault)
    total, steps = len(losses(uninterrupted)), len(losses(run))
    assert (steps, total) == (8, 20)
    assert f"stop requested: step {steps} of {total} is saved; run the same command to resume" in stopped.err
    steps_per_epoch = round(1 / read_metrics(run / "metrics.jsonl")[0]["epoch"])
    assert steps % steps_per_epoch, "the run must stop inside an epoch"

    resumed = launch(2, "train", *command_line)
    assert f"resuming at step {steps} of {total}" in resumed.err
    assert losses(run) == losses(uninterrupted)
    for name in ("model.safetensors", "ema.safetensors"):
        content, expected = (
            (path / "checkpoints" / f"{total:08d}" / name).read_bytes() for path in (run, uninterrupted)
        )
        assert content == expected

    repeated = launch(2, "train", *command_line)
    assert "is already complete" in repeated.err


@pytest.mark.slow
def test_results_that_are_read_a_step_late_stop_all_ranks_together_and_lose_no_row(
    phantom_shards: Path, runs: Path, uninterrupted: Path
) -> None:
    run = runs / "late"
    command_line = arguments(phantom_shards, runs, run.name, *EXACT)
    fault = {"late": True, "place": "step", "count": 8, "action": "SIGTERM"}
    stopped = launch(2, "train", *command_line, expect=75, inject=fault)
    assert "stop requested: step 9 of 20 is saved" in stopped.err
    assert losses(run) == losses(uninterrupted)[:9]
    (run / "SAVE").touch()
    launch(2, "train", *command_line, "--train.keep", "9", inject={"late": True})
    assert losses(run) == losses(uninterrupted)
    # the checkpoint after an epoch answers the request, too
    assert complete_steps(run / "checkpoints") == [5, 9, 10, 15, 20]
    assert not (run / "SAVE").exists()
    rows = [(row["kind"], row["step"]) for row in read_metrics(run / "metrics.jsonl")]
    assert rows == [(row["kind"], row["step"]) for row in read_metrics(uninterrupted / "metrics.jsonl")]


@pytest.mark.parametrize(("zero_stage", "own"), [("0", ["brain_dist/training/nonfinite.py:guard"]), ("2", [])])
def test_a_step_waits_for_the_device_only_to_check_its_gradient(
    phantom_shards: Path, tmp_path: Path, zero_stage: str, own: list[str]
) -> None:
    """Also a step that writes its row: the loss and the norm are read after the next step, when they have arrived."""
    settings = [*EXACT, "--train.zero_stage", zero_stage, "--train.epochs", "1", "--data.loader", "synthetic"]
    inject = {"late": True, "waits": str(tmp_path / "waits")}
    launch(1, "train", *arguments(phantom_shards, tmp_path, "run", *settings), inject=inject)
    assert len(losses(tmp_path / "run")) == 5
    steps = [json.loads(line) for line in (tmp_path / "waits").read_text().splitlines()]
    for step, calls in enumerate(steps):
        by_deepspeed = [call for call in calls if call.startswith("deepspeed/")]
        # sums and norm of the step before
        late = ["brain_dist/ranks/stopping.py:read"] * 2 if step else []
        assert sorted(set(calls) - set(by_deepspeed)) == sorted({*own, *late}), step
        assert len(calls) - len(by_deepspeed) == len(own) + len(late), step
        assert bool(by_deepspeed) or zero_stage == "0", "DeepSpeed checks the gradient itself"


def test_bf16_trains_and_batchnorm_statistics_are_averaged_over_two_ranks(phantom_shards: Path, runs: Path) -> None:
    launch(2, "train", *arguments(phantom_shards, runs, "bf16", "--train.precision", "bf16", "--optim.ema", "0.5"))
    assert losses(runs / "bf16")[-1] < losses(runs / "bf16")[0]

    settings = ["--model.name", "test_efficientnet", "--optim.ema", "0.5", "--train.precision", "amp"]
    result = launch(2, "train", *arguments(phantom_shards, runs, "bn", *settings))
    evaluation = [row for row in read_metrics(runs / "bn" / "metrics.jsonl") if row["kind"] == "eval"][-1]
    # one process evaluates the saved network as two ranks did in training, so their statistics were equal
    launch(1, "evaluate", str(runs / "bn"), "--split", "val")
    metrics = json.loads((runs / "bn" / "predictions" / "val.json").read_text())
    assert metrics["nll"] == pytest.approx(evaluation["loss"], abs=0.02), result.err


def signal_second_rank(number: signal.Signals) -> Callable[[subprocess.Popen[str]], None]:
    """Sends a signal to rank 1 of a launcher."""

    def send(launcher: subprocess.Popen[str]) -> None:
        _, second = children(launcher.pid)
        os.kill(second, number)

    return send


def test_signal_to_one_rank_stops_all(phantom_shards: Path, runs: Path) -> None:
    command_line = arguments(phantom_shards, runs, "one-rank", "--train.epochs", "50")
    result = interrupt(
        2, command_line, lambda: len(losses(runs / "one-rank")) > 3, send=signal_second_rank(signal.SIGUSR1)
    )
    assert result.code == 75, result.err


@pytest.mark.slow
def test_launcher_restarts_after_a_killed_rank_and_the_result_is_the_same(
    phantom_shards: Path, runs: Path, uninterrupted: Path
) -> None:
    run = runs / "restarted"
    result = interrupt(
        2,
        arguments(phantom_shards, runs, run.name, *EXACT),
        lambda: bool(complete_steps(run / "checkpoints")),
        send=signal_second_rank(signal.SIGKILL),
        options=["--restarts", "1"],
    )
    assert result.code == 0, result.err
    assert "process 1 was ended by SIGKILL" in result.err
    assert "restarting all 2 processes, 0 restarts left" in result.err
    assert re.search(r"resuming at step (5|10|15) of 20", result.err), result.err  # the end of an epoch
    assert losses(run) == losses(uninterrupted)


def test_resume_with_other_settings_is_rejected(phantom_shards: Path, runs: Path, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted, runs / "other")
    command_line = arguments(phantom_shards, runs, "other", *EXACT, "--optim.lr", "5e-4")
    result = launch(2, "train", *command_line, expect=2)
    assert "with optim.lr=0.001, now it is 0.0005" in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_more_epochs_are_refused_and_another_run_starts_from_the_weights(
    phantom_shards: Path, runs: Path, uninterrupted: Path
) -> None:
    more = arguments(phantom_shards, runs, uninterrupted.name, *EXACT, "--train.epochs", "6")
    longer = launch(2, "train", *more, expect=2)
    assert "with train.epochs=4, now it is 6; set it back to resume, or choose another run.name" in longer.err
    assert f"(add model.weights={uninterrupted} to start from its weights)" in longer.err
    assert len(longer.err.strip().splitlines()) == 1

    unchanged = [
        "--train.epochs",
        "1",
        "--optim.lr",
        "1e-12",
        "--optim.weight_decay",
        "0",
        "--optim.warmup_epochs",
        "0",
    ]
    checkpoint = newest_checkpoint(uninterrupted)
    for ranks, folder in ((2, uninterrupted), (1, checkpoint)):
        run = runs / f"from-{folder.name}"
        settings = arguments(phantom_shards, runs, run.name, *unchanged, "--model.weights", str(folder))
        result = launch(ranks, "train", *settings)
        assert f"initial weights: {checkpoint}/ema.safetensors" in result.err
        trained = load_file(newest_checkpoint(run) / "model.safetensors")
        expected = load_file(checkpoint / "ema.safetensors")
        assert all((value - expected[name]).abs().max() < 1e-6 for name, value in trained.items())
    settings = arguments(phantom_shards, runs, "from-nothing", "--model.weights", str(phantom_shards))
    assert f"{phantom_shards} is neither the folder of a run" in launch(1, "train", *settings, expect=2).err


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "attempts.jsonl"])
def test_nothing_is_written_through_links_in_a_run_folder(phantom_shards: Path, tmp_path: Path, name: str) -> None:
    target, link = tmp_path / "thesis.tex", tmp_path / "sent" / name
    target.write_text("my thesis")
    link.parent.mkdir()
    link.symlink_to(target)
    result = in_process("train", *arguments(phantom_shards, tmp_path, "sent"), expect=2)
    assert f"{link} is a symbolic link" in result.err
    with pytest.raises(OSError, match="symbolic links"):
        take_lock(link)
    assert target.read_text() == "my thesis"


def test_damaged_checkpoint_is_reported_and_the_previous_one_taken(
    phantom_shards: Path, runs: Path, uninterrupted: Path
) -> None:
    shutil.copytree(uninterrupted, runs / "damaged")
    file = next(newest_checkpoint(runs / "damaged").glob("optimizer-*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    result = launch(2, "train", *arguments(phantom_shards, runs, "damaged", *EXACT))
    assert "is damaged and skipped" in result.err
    assert file.name in result.err
    assert losses(runs / "damaged") == losses(uninterrupted)


def test_damaged_shards_are_reported_before_the_first_step(phantom_shards: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(phantom_shards, shards)
    shard = next(shards.glob("*-train-*.tar"))
    content = shard.read_bytes()
    half = len(content) // 2
    for damage, message in (
        (lambda: shard.write_bytes(content[:half]), f"has {half:,} bytes and needs "),
        (shard.unlink, "cannot be used (No such file or directory); copy or build it again"),
    ):
        damage()
        result = in_process("train", *arguments(shards, tmp_path, "short"), expect=2)
        assert f"{shard} {message}" in result.err
        assert not (tmp_path / "short").exists()


def test_too_many_ranks_for_the_batch_is_one_line(phantom_shards: Path, runs: Path) -> None:
    result = launch(2, "train", *arguments(phantom_shards, runs, "odd", "--train.global_batch", "21"), expect=2)
    assert "train.global_batch=21 is not a multiple of train.micro_batch=4 × 2 ranks" in result.err
    assert len(result.err.strip().splitlines()) == 1
