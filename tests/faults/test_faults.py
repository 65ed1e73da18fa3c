"""One fault of each kind, really injected into two real ranks; `make soak` injects many more."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from kinds import KINDS
from nursery import Nursery
from trial import SETTINGS, WORLD, Reference, Trial, undisturbed

from brain_dist.checkpoints.layout import complete_steps

NEEDS_MOUNT = {"full disk", "read-only run folder"}


def may_mount() -> bool:
    """Whether this process may mount a file system; in a plain container even root may not."""
    words = ["unshare", "--mount", "mount", "-t", "tmpfs", "probe", "/mnt"]
    return os.geteuid() == 0 and subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def references(nursery: Nursery, small_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    """Undisturbed runs of two settings that differ in all they can."""
    base = tmp_path_factory.mktemp("undisturbed")
    chosen = ("ZeRO 2, amp, average", "ZeRO 3, fp32")
    return {name: undisturbed(nursery, small_shards, base / str(n), name) for n, name in enumerate(chosen)}


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_fault_the_same_command_ends_as_if_there_had_been_none(
    kind: str, nursery: Nursery, small_shards: Path, references: dict[str, Reference], tmp_path: Path
) -> None:
    if kind in NEEDS_MOUNT and not may_mount():
        pytest.skip("needs the right to mount a file system")
    number = list(KINDS).index(kind)
    setting = list(references)[number % 2]
    for attempt in range(5):  # a moment that comes too late is no fault
        trial = Trial(nursery, small_shards, tmp_path / str(attempt), setting, 100 * number + attempt)
        outcome = KINDS[kind](trial, references[setting])
        assert outcome.recovered, outcome.said
        assert not outcome.wrong
        assert not outcome.lost
        if outcome.injected:
            return
    pytest.fail(f"five moments for {kind} came too late")


def test_a_file_named_save_takes_a_checkpoint_and_training_goes_on(
    nursery: Nursery, small_shards: Path, tmp_path: Path
) -> None:
    trial = Trial(nursery, small_shards, tmp_path / "trial", next(iter(SETTINGS)), 0)
    trial.run.mkdir()
    (trial.run / "SAVE").touch()
    codes = trial.start(more=["--train.save_every", "1000", "--train.keep", "9"]).wait(90)
    assert codes == [0] * WORLD, trial.said()
    assert complete_steps(trial.checkpoints) == [1, 15]
    assert not (trial.run / "SAVE").exists()


def test_a_second_job_on_the_same_run_is_turned_away(nursery: Nursery, small_shards: Path, tmp_path: Path) -> None:
    trial = Trial(nursery, small_shards, tmp_path / "trial", next(iter(SETTINGS)), 0)
    first = trial.start(more=["--train.epochs", "500"])
    while not complete_steps(trial.checkpoints) and first.running():
        pass
    second = trial.start(more=["--train.epochs", "500"])
    assert second.wait(60) == [2] * WORLD
    assert "another job trains in" in trial.said()
    first.signal(1, 15)
    assert first.wait(60) == [75] * WORLD


def test_a_run_that_diverges_ends_with_the_evidence(nursery: Nursery, small_shards: Path, tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file

    trial = Trial(nursery, small_shards, tmp_path / "trial", "ZeRO 3, fp32", 0)
    # weights of 1e30 leave no finite number behind
    wild = ["--optim.lr", "1e30", "--optim.warmup_epochs", "0", "--train.skip_limit", "3"]
    assert trial.start(more=wild).wait(60) == [1] * WORLD
    assert "not finite in 3 steps in a row" in trial.said()
    assert "Traceback" not in trial.said()
    for rank in range(WORLD):
        (kept,) = (trial.run / "nonfinite").glob(f"step-*-rank-{rank:05d}.safetensors")
        tensors = load_file(kept)
        keys = json.loads(kept.with_suffix(".json").read_text())
        assert tensors["image"].shape == (12, 1, 32, 32)
        assert len(keys) == 12
        assert all(isinstance(key, str) and key for key in keys)
    rows = [json.loads(line) for line in (trial.run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["skipped"] >= 2
    assert rows[-1]["grad_norm"] is None
