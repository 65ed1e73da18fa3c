"""One fault of each kind, injected into two real ranks; ``make soak`` injects many more."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from fork_server import ForkServer
from kinds import KINDS
from safetensors.torch import load_file
from trial import SETTINGS, WORLD_SIZE, Reference, Trial, reference_run, wait_while

from benchmarks.support.namespaces import missing_requirement
from brain_dist.checkpoints.layout import complete_steps

NEEDS_MOUNT = {kind for kind in KINDS if kind.startswith("full ")} | {"read-only run folder"}
# `make test` runs these kinds, with the first of SETTINGS; `make test-slow` all others, and the other setting
FAST = {"SIGKILL in checkpoint file", "SIGKILL of one rank", "SIGSTOP", "full disk"}
FIRST_SETTING = next(iter(SETTINGS))


def may_mount() -> bool:
    """Whether this process may mount a file system; in most containers even root may not."""
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "probe", "/mnt"]
    return os.geteuid() == 0 and subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def undisturbed(
    server: ForkServer, small_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Reference]:
    """The undisturbed run of a setting, made when it is first asked for."""
    base = tmp_path_factory.mktemp("references")
    return cache(lambda setting: reference_run(server, small_shards, base / setting.replace(" ", "_"), setting))


@pytest.mark.parametrize(
    "kind", [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_resume_after_fault_equals_undisturbed_run(
    kind: str, server: ForkServer, small_shards: Path, undisturbed: Callable[[str], Reference], tmp_path: Path
) -> None:
    if kind in NEEDS_MOUNT and not may_mount():
        pytest.skip("needs the right to mount a file system")
    if kind == "network partition" and missing_requirement():
        pytest.skip(str(missing_requirement()))
    number = list(KINDS).index(kind)
    setting = FIRST_SETTING if kind in FAST or number % 2 == 0 else "ZeRO 3, fp32"
    for attempt in range(5):  # repeated if the fault came after the end of the run
        trial = Trial(server, small_shards, tmp_path / str(attempt), setting, seed=100 * number + attempt)
        outcome = KINDS[kind](trial, undisturbed(setting))
        assert outcome.recovered, outcome.output
        assert not outcome.wrong
        assert not outcome.wrong_table
        assert not outcome.lost
        if outcome.injected:
            return
    pytest.fail(f"all five faults of kind {kind} came too late")


def test_save_file_triggers_checkpoint(server: ForkServer, small_shards: Path, tmp_path: Path) -> None:
    trial = Trial(server, small_shards, tmp_path / "trial", FIRST_SETTING, seed=0)
    trial.run.mkdir()
    (trial.run / "SAVE").touch()
    codes = trial.start(settings=["--train.save_every", "1000", "--train.keep", "9"]).wait(90)
    assert codes == [0] * WORLD_SIZE, trial.output()
    assert complete_steps(trial.checkpoints) == [1, 15]
    assert not (trial.run / "SAVE").exists()


@pytest.mark.slow
def test_second_job_on_same_run_is_rejected(server: ForkServer, small_shards: Path, tmp_path: Path) -> None:
    trial = Trial(server, small_shards, tmp_path / "trial", FIRST_SETTING, seed=0)
    first = trial.start(settings=["--train.epochs", "500"])
    wait_while(first, lambda: not complete_steps(trial.checkpoints))
    second = trial.start(settings=["--train.epochs", "500"])
    assert second.wait(60) == [2] * WORLD_SIZE
    assert "another job trains in" in trial.output()
    first.signal(1, 15)
    assert first.wait(60) == [75] * WORLD_SIZE


def test_diverging_run_ends_and_keeps_its_last_batch(server: ForkServer, small_shards: Path, tmp_path: Path) -> None:
    trial = Trial(server, small_shards, tmp_path / "trial", "ZeRO 3, fp32", seed=0)
    # each update multiplies weights by 1 - lr · weight_decay = -9,999, so that losses are soon not finite
    diverging = ["--optim.lr", "100", "--optim.weight_decay", "100", "--optim.warmup_epochs", "0"]
    diverging += ["--train.skip_limit", "3"]
    assert trial.start(settings=diverging).wait(60) == [1] * WORLD_SIZE
    assert "not finite in 3 steps in a row" in trial.output()
    assert "Traceback" not in trial.output()
    for rank in range(WORLD_SIZE):
        (path,) = (trial.run / "nonfinite").glob(f"step-*-rank-{rank:05d}.safetensors")
        tensors = load_file(path)
        keys = json.loads(path.with_suffix(".json").read_text())
        assert tensors["image"].shape == (12, 1, 32, 32)
        assert len(keys) == 12
        assert all(isinstance(key, str) and key for key in keys)
    rows = [json.loads(line) for line in (trial.run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["skipped"] >= 2
    assert rows[-1]["grad_norm"] is None
