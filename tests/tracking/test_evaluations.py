"""Which evaluation is the best, when waiting ends, and that a resumed run decides as the undisturbed one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY, read_metrics, verb

from brain_dist.checkpoints.layout import checkpoint_folder, complete_steps
from brain_dist.errors import UserError
from brain_dist.inference.run import load_run
from brain_dist.tracking.evaluations import Evaluations, best_step


def written(path: Path, values: list[float | None], metric: str = "kappa") -> None:
    """A metrics.jsonl with an evaluation every ten steps, between training lines, and a line cut short."""
    rows: list[dict[str, object]] = [{"kind": "train", "step": 0, "loss": 1.0}]
    for at, value in enumerate(values, start=1):
        rows += [
            {"kind": "train", "step": 10 * at - 1, "loss": 1.0},
            {"kind": "eval", "split": "val", "step": 10 * at, metric: value},
        ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "ev')


@pytest.mark.parametrize(
    ("metric", "values", "best", "stops_after"),
    [
        ("kappa", [0.1, 0.5, 0.4, 0.3, 0.6], 50, 4),
        ("kappa", [0.5, 0.5, 0.6, 0.6, 0.6], 30, 5),  # of equals the first: an equal one is not better
        ("loss", [0.5, 0.3, 0.4, 0.2, 0.9], 40, None),
        ("kappa", [None, None, None, 0.2, None], 40, None),  # nothing to be better than
        ("kappa", [0.1, None, None, 0.2, 0.3], 50, 3),
    ],
)
def test_the_best_one_and_the_end_of_waiting(
    tmp_path: Path, metric: str, values: list[float | None], best: int, stops_after: int | None
) -> None:
    written(tmp_path / "metrics.jsonl", values, metric)
    assert Evaluations.read(tmp_path, metric, 2).best == best
    until = [n for n in range(1, 6) if Evaluations.read(tmp_path, metric, 2, up_to=10 * n).exhausted]
    assert (until[0] if until else None) == stops_after
    assert not Evaluations.read(tmp_path, metric, 0).exhausted
    assert Evaluations.read(tmp_path, None, 0).best is None


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trained without train\.best"):
        best_step(tmp_path, None, [10])
    with pytest.raises(UserError, match="tells of no evaluation"):
        best_step(tmp_path, "kappa", [10])
    written(tmp_path / "metrics.jsonl", [0.1, 0.3, 0.2])
    assert best_step(tmp_path, "kappa", [20, 30]) == 20
    with pytest.raises(UserError, match="step 20 was best, but its checkpoint is not there"):
        best_step(tmp_path, "kappa", [10, 30])


@pytest.fixture(scope="module")
def words(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A rate so high that the network soon names one class only; saves between evaluations, the newest is kept."""
    batch = ["--train.global_batch", "24", "--train.micro_batch", "24", "--train.precision", "fp32"]
    settings = ["--train.epochs", "12", "--optim.lr", "0.05", "--optim.warmup_epochs", "0", "--optim.ema", "0.5"]
    watch = ["--train.best", "accuracy", "--train.patience", "2", "--train.save_every", "7", "--train.keep", "1"]
    runs = tmp_path_factory.mktemp("runs")
    return [*TINY, *batch, *settings, *watch, "--data.shards", str(phantom_shards), "--run.dir", str(runs)]


@pytest.fixture(scope="module")
def stopped(words: list[str]) -> Path:
    done = verb("train", *words, "--run.name", "stopped")
    assert "stopped early: 2 evaluations without a better accuracy" in done.err
    return Path(words[-1]) / "stopped"


def evaluations(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["accuracy"]) for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "eval"]


def test_a_run_ends_when_nothing_gets_better_and_keeps_its_best(stopped: Path) -> None:
    told = evaluations(stopped)
    best = max(told, key=lambda row: row[1])[0]
    assert best == told[-3][0]
    assert best % 7, "not a step at which it would be saved anyway"
    assert len(told) < 12
    assert complete_steps(stopped / "checkpoints") == [best, told[-1][0]]
    verb("evaluate", str(stopped), "--split", "val", "--step", "best", "--name", "best")
    said = json.loads((stopped / "predictions" / "best.json").read_text())
    loss = next(row["loss"] for row in read_metrics(stopped / "metrics.jsonl") if row["kind"] == "eval")
    assert told[0][0] == best
    assert said["nll"] == pytest.approx(loss, abs=1e-4)
    assert load_run(stopped, step="best").step == best


def test_a_resumed_run_makes_a_missed_evaluation_and_ends_at_the_same_step(words: list[str], stopped: Path) -> None:
    """Killed after the best step's checkpoint was written and before its evaluation was told."""
    again = Path(words[-1]) / "again"
    shutil.copytree(stopped, again)
    best, last = complete_steps(again / "checkpoints")
    shutil.rmtree(checkpoint_folder(again / "checkpoints", last))
    told = (again / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in told if json.loads(line)["step"] < best]
    (again / "metrics.jsonl").write_text("".join(kept))
    verb("train", *words, "--run.name", "again")
    assert evaluations(again) == evaluations(stopped)
    assert complete_steps(again / "checkpoints") == [best, last]
    assert "is trained to its end" in verb("train", *words, "--run.name", "again").err
