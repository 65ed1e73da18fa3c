"""`brain-dist benchmark run`: what it refuses, and real trainings that are stopped and killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT, TINY, children, command, environment, in_process, read_metrics

from brain_dist.benchmarking.folder import Folder
from brain_dist.tracking.attempts import read

SETTINGS = [
    *TINY[2:], "--run.device", "cpu", "--train.precision", "fp32", "--train.zero_stage", "0", "--train.epochs", "4",
    "--train.global_batch", "16", "--train.micro_batch", "8", "--train.best", "f1_macro", "--train.save_every", "6",
]  # fmt: skip


def run(out: Path, shards: Path, *arguments: str, models: str = "test_convnext", expect: int = 2) -> str:
    """Run the verb in this process and return what it prints on stderr."""
    options = ["--models", models, "--data.shards", str(shards), *SETTINGS, *arguments]
    return in_process("benchmark", "run", str(out), *options, expect=expect).err


def test_help_lists_options_and_settings() -> None:
    assert "benchmark run|cross|probe|table|page|costs" in in_process("benchmark", "--help").out
    printed = in_process("benchmark", "run", "--help").out
    assert "--models" in printed
    assert "--optim.lr" in printed


@pytest.mark.parametrize(
    ("models", "arguments", "message"),
    [
        ("convnext_atom", [], "model.name=convnext_atom: timm has no such model (did you mean convnext_atto?)"),
        ("", [], "--models is empty"),
        ("resnet18,resnet18", [], "two of them are called resnet18"),
        ("resnet18", ["--seeds", "0,a"], "--seeds 0,a: must be different integers"),
        ("resnet18", ["--seeds", "1,1"], "--seeds 1,1: must be different integers"),
        ("resnet18", ["--lr", "resnet81=1e-3"], "--lr resnet81=1e-3 (did you mean resnet18?): must be MODEL=X"),
        ("resnet18", ["--lr", "resnet18=-1"], "optim.lr=-1.0: must be in (0, 100]"),
        ("resnet18", ["--rates", "1e-3"], "--rates 1e-3: must be two or more different positive numbers"),
        ("resnet18", ["--rates", "1e-3,x"], "--rates 1e-3,x: must be two or more different positive numbers"),
        ("resnet18", ["--rates", "1e-3,0"], "--rates 1e-3,0: must be two or more different positive numbers"),
        ("resnet18", ["--rates", "1e-3,2e-3", "--lr", "resnet18=1e-3"], "leave --lr resnet18=1e-3 out"),
        ("resnet18", ["--rates", "1e-3,2e-3", "--train.best", "null"], "--rates needs train.best"),
        ("resnet18", ["--folds", "3"], "was built without folds; leave --folds out"),
        ("resnet18", ["--folds", "0"], "--folds 0: must be ≥ 2; leave it out for shards without folds"),
        ("resnet18", ["--processes", "0"], "--processes 0: must be ≥ 1"),
        ("resnet18", ["--train.precision", "auto"], "train.precision=auto: networks with and without BatchNorm"),
        ("resnet18", ["--no-such-option"], "unknown option --no-such-option"),
    ],
)
def test_refusals(phantom_shards: Path, tmp_path: Path, models: str, arguments: list[str], message: str) -> None:
    assert message in run(tmp_path / "out", phantom_shards, *arguments, models=models)
    assert not (tmp_path / "out" / "benchmark.json").exists()


def test_files_of_models_must_not_change_the_conditions(phantom_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(
        "model: {name: test_convnext, options: {ls_init_value: 1.0}}\noptim: {lr: 0.002}\n"
    )
    (tmp_path / "two.yaml").write_text("model: {name: test_efficientnet}\noptim: {layer_decay: 0.9}\n")
    error = run(tmp_path / "out", phantom_shards, models=f"{tmp_path}/one.yaml,{tmp_path}/two.yaml")
    assert "not unified: optim.layer_decay is 1.0 for one and 0.9 for two; models may differ in model.*" in error


def test_slurm_is_needed_for_a_job_array(phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "--slurm: sbatch is not on PATH" in run(tmp_path / "out", phantom_shards, "--slurm")


@pytest.fixture(scope="module")
def claimed(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark without a finished cell: the training refuses its settings."""
    out = tmp_path_factory.mktemp("claimed") / "out"
    error = run(out, phantom_shards, "--train.global_batch", "9")
    assert "brain-dist: error: test_convnext, seed 0: train.global_batch=9 is not a multiple of" in error
    assert error.count(" running") == 1
    return out


@pytest.mark.slow
def test_a_folder_keeps_its_conditions_and_shards(claimed: Path, phantom_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(claimed, out)
    record = json.loads((out / "benchmark.json").read_text())
    error = run(out, phantom_shards, "--train.global_batch", "9", "--train.epochs", "5")
    assert f"not unified: train.epochs is 4 in {out} and 5 in this command" in error
    error = run(out, phantom_shards, "--train.global_batch", "9", "--processes", "2")
    assert f"the number of processes is 1 in {out} and 2 in this command" in error
    version = record["sources"][0]["version"]
    record["sources"][0]["version"] = "e" * 64
    (out / "benchmark.json").write_text(json.dumps(record))
    error = run(out, phantom_shards, "--train.global_batch", "9")
    assert f"were trained on version eeeeeeeeeeee of phantom, and {phantom_shards} is version {version[:12]}" in error


def test_folds_are_needed_for_shards_of_folds(phantom_shards: Path, tmp_path: Path) -> None:
    images, shards = phantom_shards.parent / "images", tmp_path / "folds"
    in_process("shard", "build", "--source", str(images), "--out", str(shards), "--split", "kfold", "--folds", "3")
    assert "was built as 3 folds; give --folds 3" in run(tmp_path / "out", shards)
    assert "was built as 3 folds; give --folds 3" in run(tmp_path / "out", shards, "--folds", "4")


def test_another_process_in_the_folder_is_reported(
    phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brain_dist.benchmarking.folder.LOCK_TIME", 0.0)
    with Folder(tmp_path).locked():
        assert f"another process runs the benchmark in {tmp_path}" in run(tmp_path, phantom_shards)


MODELS = ["test_convnext", "test_efficientnet"]


def benchmark_command(out: Path, shards: Path) -> list[str]:
    options = ["--models", ",".join(MODELS), "--seeds", "0", "--data.shards", str(shards), *SETTINGS]
    return [sys.executable, "-m", "brain_dist.benchmark", "run", str(out), *options]


def steps(run_folder: Path) -> int:
    return sum(row["kind"] == "train" for row in read_metrics(run_folder / "metrics.jsonl"))


def descendants(process: int) -> list[int]:
    found = children(process)
    return [*found, *(each for child in found for each in descendants(child))]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_killed_benchmark_gives_the_same_bytes(phantom_shards: Path, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    printed = command(benchmark_command(undisturbed, phantom_shards), timeout=600)
    assert "[2/2] test_efficientnet, seed 0 done: " in printed.err
    assert "accuracy" in printed.out

    keys = [cell["cell"] for cell in json.loads((undisturbed / "benchmark.json").read_text())["cells"]]
    first, second = (killed / "cells" / key for key in keys)

    def interrupted(ready: Callable[[], bool], stop: Callable[[int], None]) -> subprocess.Popen[str]:
        """Start the same command and stop it once ``ready``."""
        process = subprocess.Popen(
            benchmark_command(killed, phantom_shards), cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        deadline = time.monotonic() + 300
        while not ready() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()[1]
        stop(process.pid)
        process.wait(120)
        return process

    def kill_all(process: int) -> None:
        for each in [process, *descendants(process)]:
            os.kill(each, signal.SIGKILL)

    # a request to stop: the training saves, and the exit code is that of a clean save
    stopped = interrupted(lambda: steps(first) >= 3, lambda process: os.kill(process, signal.SIGTERM))
    assert stopped.returncode == 75, stopped.communicate()[1]
    assert "stopped: 0 of 2 cells have ended; the same command goes on" in stopped.communicate()[1]
    at_stop = steps(first)
    # SIGKILL of the benchmark alone: its training saves and ends, too
    interrupted(lambda: steps(first) > at_stop, lambda process: os.kill(process, signal.SIGKILL))
    # SIGKILL of everything, in the second cell
    interrupted(lambda: steps(second) >= 13, kill_all)
    predictions = Folder(killed).predictions(first.name)
    written = predictions.stat().st_mtime_ns
    command(benchmark_command(killed, phantom_shards), timeout=600)

    for name in ("table", "cells"):
        assert (killed / f"{name}.parquet").read_bytes() == (undisturbed / f"{name}.parquet").read_bytes()
    assert predictions.stat().st_mtime_ns == written, "a finished cell ran again"
    for cell, attempts in ((first, 3), (second, 2)):
        starts = [attempt["step"] for attempt in read(cell)]
        assert len(starts) == attempts
        assert starts[0] == 0 < starts[1], "began again instead of resuming"
    (measured,) = (killed / "costs").glob("test_convnext-*.json")
    costs = json.loads(measured.read_text())
    assert costs["parameters"] > 0
    assert "missing" not in (killed / "table.md").read_text()

    # one more seed: the cells of the first one are kept
    record = (killed / "benchmark.json").read_text()
    more = [*benchmark_command(killed, phantom_shards), "--seeds", "0,1", "--models", MODELS[0]]
    printed = command(more, timeout=600)
    assert printed.err.count(" running") == 1
    assert (killed / "benchmark.json").read_text() != record
