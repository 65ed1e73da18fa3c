"""Saved by two ranks in the middle of an epoch, resumed by one, three or four, under the same ZeRO stage or another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import read_metrics
from nursery import Nursery, Ranks

from brain_dist.checkpoints.layout import checkpoint_folder

SAVED = 3  # of the five steps of the first epoch
STEPS = 10
# Two images a micro-batch, so that 1, 2, 3 and 4 ranks divide the global batch; mixing, erasing and dropped paths on
ARGUMENTS = [
    *("--model.name", "test_convnext", "--data.size", "32", "--data.threads", "1", "--track.wandb", "off"),
    *("--train.global_batch", "24", "--train.micro_batch", "2", "--train.epochs", "2", "--optim.lr", "1e-3"),
    *("--train.save_every", str(SAVED), "--train.keep", "9", "--train.eval_every", "0", "--run.device", "cpu"),
    *("--augment.mixup", "0.4", "--augment.cutmix", "1.0", "--augment.erase", "0.5", "--model.drop_path", "0.2"),
]
# precision, stage that saved → (stage, ranks) that go on. bf16 rounds weights, so sums in another order show more.
CASES = {
    ("fp32", 0): [(0, 1), (0, 3), (2, 4)],
    ("bf16", 1): [(1, 4), (0, 3)],
    ("amp", 2): [(2, 3), (2, 4), (3, 1)],
    ("fp32", 3): [(3, 1), (1, 3)],
}
TOLERANCE = {"fp32": 1e-5, "amp": 2e-2, "bf16": 2e-2}  # relative, of each step's loss


def train(nursery: Nursery, shards: Path, folder: Path, precision: str, stage: int, ranks: int) -> str:
    """Run to the end; returns what was printed."""
    folder.mkdir(exist_ok=True)
    where = ["--data.shards", str(shards), "--run.dir", str(folder), "--run.name", "run"]
    kind = ["--train.precision", precision, "--train.zero_stage", str(stage)]
    log = folder / "log"
    record = {"record": str(folder / "batches")}
    codes = Ranks(nursery, ranks, "train", [*ARGUMENTS, *kind, *where], log, inside=record).wait(120)
    assert codes == [0] * ranks, log.read_text()
    return log.read_text()


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "run" / "metrics.jsonl") if row["kind"] == "train"]


def batches(folder: Path) -> dict[tuple[int, int], tuple[int, int]]:
    """(step, place in the global batch) → (row, checksum of the augmented pixels), from all ranks."""
    found = {}
    for file in folder.glob("batches-*"):
        for line in file.read_text().splitlines():
            step, position, row, pixels = json.loads(line)
            assert (step, position) not in found
            found[step, position] = (row, pixels)
    return found


@pytest.mark.parametrize(("precision", "stage"), CASES, ids=lambda value: str(value))
def test_other_ranks_and_stages_go_on_with_the_same_samples_and_losses(
    precision: str, stage: int, nursery: Nursery, small_shards: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    train(nursery, small_shards, whole, precision, stage, 2)
    assert len(losses(whole)) == STEPS
    assert len(batches(whole)) == STEPS * 24
    for then, ranks in CASES[precision, stage]:
        resumed = tmp_path / f"{then}-{ranks}"
        kept = checkpoint_folder(resumed / "run" / "checkpoints", SAVED)
        shutil.copytree(checkpoint_folder(whole / "run" / "checkpoints", SAVED), kept)
        lines = (whole / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
        (resumed / "run" / "metrics.jsonl").write_text("".join(lines[:SAVED]))
        said = train(nursery, small_shards, resumed, precision, then, ranks)
        assert f"resuming at step {SAVED} of {STEPS}" in said
        assert f"the number of ranks 2 → {ranks}" in said
        # every sample of every later step, and every pixel that augmentation made of it
        assert batches(resumed) == {at: what for at, what in batches(whole).items() if at[0] >= SAVED}
        assert losses(resumed) == pytest.approx(losses(whole), rel=TOLERANCE[precision]), (then, ranks)
