"""A run saved by two ranks in the middle of an epoch resumes with one, three or four, also under another ZeRO stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fork_server import ForkServer, Ranks
from helpers import TINY, losses

from brain_dist.checkpoints.layout import checkpoint_folder

SAVED_STEP = 3  # of the five steps of the first epoch
STEPS = 10
BATCH = 24
# Micro-batches of 2, so that 1 to 4 ranks divide the global batch; all augmentation that draws random numbers
ARGUMENTS = [
    *(*TINY, "--run.device", "cpu", "--train.global_batch", str(BATCH), "--train.micro_batch", "2"),
    *("--train.epochs", "2", "--optim.lr", "1e-3", "--train.eval_every", "0"),
    *("--train.save_every", str(SAVED_STEP), "--train.keep", "9", "--model.drop_path", "0.2"),
    *("--augment.mixup", "0.4", "--augment.cutmix", "1.0", "--augment.erase", "0.5"),
]
# (precision, ZeRO stage of the first run) → (stage, ranks) of the resumed runs
CASES = {
    ("fp32", 0): [(0, 1), (0, 3), (2, 4)],
    ("bf16", 1): [(1, 4), (0, 3)],
    ("amp", 2): [(2, 3), (2, 4), (3, 1)],
    ("fp32", 3): [(3, 1), (1, 3)],
}
FAST = ("fp32", 3)  # `make test-slow` runs the other cases
# Relative tolerance of each step's loss. Sums in another order differ more when bf16 rounds the weights.
TOLERANCE = {"fp32": 1e-5, "amp": 2e-2, "bf16": 2e-2}


def train(server: ForkServer, shards: Path, folder: Path, precision: str, stage: int, ranks: int) -> str:
    """Train to the end and return the output."""
    folder.mkdir(exist_ok=True)
    paths = ["--data.shards", str(shards), "--run.dir", str(folder), "--run.name", "run"]
    engine = ["--train.precision", precision, "--train.zero_stage", str(stage)]
    log, record = folder / "log", {"record": str(folder / "batches")}
    codes = Ranks(server, ranks, "train", [*ARGUMENTS, *engine, *paths], log, inject=record).wait(120)
    assert codes == [0] * ranks, log.read_text()
    return log.read_text()


def recorded_batches(folder: Path) -> dict[tuple[int, int], tuple[int, int]]:
    """(step, position in the global batch) → (row, checksum of the augmented pixels), from all ranks."""
    samples = {}
    for file in folder.glob("batches-*"):
        for line in file.read_text().splitlines():
            step, position, row, checksum = json.loads(line)
            assert (step, position) not in samples
            samples[step, position] = (row, checksum)
    return samples


@pytest.mark.parametrize(
    ("precision", "stage"), [case if case == FAST else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
)
def test_resume_with_other_ranks_and_stages_has_same_samples_and_losses(
    precision: str, stage: int, server: ForkServer, small_shards: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    train(server, small_shards, whole, precision, stage, 2)
    expected_losses, expected_samples = losses(whole / "run"), recorded_batches(whole)
    assert len(expected_losses) == STEPS
    assert len(expected_samples) == STEPS * BATCH
    remaining_samples = {key: sample for key, sample in expected_samples.items() if key[0] >= SAVED_STEP}
    for resumed_stage, ranks in CASES[precision, stage]:
        resumed = tmp_path / f"{resumed_stage}-{ranks}"
        copy_until(SAVED_STEP, whole / "run", resumed / "run")
        output = train(server, small_shards, resumed, precision, resumed_stage, ranks)
        assert f"resuming at step {SAVED_STEP} of {STEPS}" in output
        assert f"the number of ranks 2 → {ranks}" in output
        assert recorded_batches(resumed) == remaining_samples
        assert losses(resumed / "run") == pytest.approx(expected_losses, rel=TOLERANCE[precision]), (
            resumed_stage,
            ranks,
        )


def copy_until(step: int, source: Path, target: Path) -> None:
    """Copy a run's checkpoint and metrics as they were when ``step`` was saved."""
    shutil.copytree(checkpoint_folder(source / "checkpoints", step), checkpoint_folder(target / "checkpoints", step))
    lines = (source / "metrics.jsonl").read_text().splitlines(keepends=True)
    (target / "metrics.jsonl").write_text("".join(lines[:step]))
