"""The best evaluation, early stopping, and that a resumed run decides as an uninterrupted one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import TINY, launch, read_metrics, verb

from brain_dist.checkpoints.choice import best_step, weights_file
from brain_dist.checkpoints.evaluations import Evaluations
from brain_dist.checkpoints.layout import MARKER, checkpoint_folder, complete_steps, encode_marker, read_marker
from brain_dist.errors import UserError
from brain_dist.inference.network import open_network, run_contract
from brain_dist.inference.run import load_run
from brain_dist.judging.predictions import read_predictions
from brain_dist.ranks.world import discover

SINGLE = discover({})


def write_metrics(path: Path, values: list[float | None], metric: str = "kappa") -> None:
    """A metrics.jsonl with an evaluation every ten steps, training rows between them, and an incomplete last line."""
    rows: list[dict[str, object]] = [{"kind": "train", "step": 0, "loss": 1.0}]
    for number, value in enumerate(values, start=1):
        rows += [
            {"kind": "train", "step": 10 * number - 1, "loss": 1.0},
            {"kind": "eval", "split": "val", "step": 10 * number, metric: value},
        ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "ev')


@pytest.mark.parametrize(
    ("metric", "values", "best", "stops_after"),
    [
        ("kappa", [0.1, 0.5, 0.4, 0.3, 0.6], 50, 4),
        ("kappa", [0.5, 0.5, 0.6, 0.6, 0.6], 30, 5),  # an equal value is not better: the first of equals is the best
        ("loss", [0.5, 0.3, 0.4, 0.2, 0.9], 40, None),
        ("kappa", [None, None, None, 0.2, None], 40, None),  # undefined values do not use up the patience
        ("kappa", [0.1, None, None, 0.2, 0.3], 50, 3),
    ],
)
def test_best_evaluation_and_early_stopping(
    tmp_path: Path, metric: str, values: list[float | None], best: int, stops_after: int | None
) -> None:
    write_metrics(tmp_path / "metrics.jsonl", values, metric)
    assert Evaluations.read(tmp_path, metric, 2).best == best
    stops = [
        n for n in range(1, 6) if Evaluations.resume(tmp_path, metric, 2, step=10 * n, world=SINGLE).patience_exhausted
    ]
    assert (stops[0] if stops else None) == stops_after
    assert not Evaluations.read(tmp_path, metric, 0).patience_exhausted
    assert Evaluations.read(tmp_path, None, 0).best is None


def test_a_missing_best_checkpoint_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trained without train\.best"):
        best_step(tmp_path, None, [10])
    with pytest.raises(UserError, match="has no evaluation with kappa yet"):
        best_step(tmp_path, "kappa", [10])
    write_metrics(tmp_path / "metrics.jsonl", [0.1, 0.3, 0.2])
    assert best_step(tmp_path, "kappa", [20, 30]) == 20
    with pytest.raises(UserError, match="step 20 was best, but its checkpoint is missing"):
        best_step(tmp_path, "kappa", [10, 30])


def test_a_lost_or_cut_metrics_file_is_replaced_by_the_copies_in_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_metrics(tmp_path / "metrics.jsonl", [0.1, 0.5, 0.4, 0.3])
    uncut = Evaluations.resume(tmp_path, "kappa", 2, step=30, world=SINGLE)
    assert [row["step"] for row in uncut.rows] == [10, 20, 30]
    folder = checkpoint_folder(tmp_path / "checkpoints", 30)
    folder.mkdir(parents=True)
    (folder / MARKER).write_bytes(encode_marker({"step": 30, "evaluations": uncut.rows, "files": {}}))
    assert Evaluations.resume(tmp_path, "kappa", 2, step=30, world=SINGLE) == uncut
    assert not capsys.readouterr().err

    for values, lost in ([0.1], 2), ([], 3):
        write_metrics(tmp_path / "metrics.jsonl", list(values))
        assert Evaluations.resume(tmp_path, "kappa", 2, step=30, world=SINGLE) == uncut
        assert f"has lost {lost} of 3 evaluations up to step 30" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").unlink()
    assert best_step(tmp_path, "kappa", [20, 30]) == 20
    assert Evaluations.read(tmp_path, "loss", 0).best is None


@pytest.fixture(scope="module")
def arguments(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings with a learning rate so high that the network soon predicts one class only.

    Checkpoints are saved between evaluations, and only the newest is kept.
    """
    batch = ["--train.global_batch", "24", "--train.micro_batch", "24", "--train.precision", "fp32"]
    settings = ["--train.epochs", "12", "--optim.lr", "0.05", "--optim.warmup_epochs", "0", "--optim.ema", "0.5"]
    stopping = ["--train.best", "accuracy", "--train.patience", "2", "--train.save_every", "7", "--train.keep", "1"]
    runs = tmp_path_factory.mktemp("runs")
    return [*TINY, *batch, *settings, *stopping, "--data.shards", str(phantom_shards), "--run.dir", str(runs)]


@pytest.fixture(scope="module")
def stopped_run(arguments: list[str]) -> Path:
    result = verb("train", *arguments, "--run.name", "stopped")
    assert "stopped early: 2 evaluations without a better accuracy" in result.err
    return Path(arguments[-1]) / "stopped"


def evaluations(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["accuracy"]) for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "eval"]


def test_a_run_stops_without_improvement_and_keeps_its_best_checkpoint(stopped_run: Path) -> None:
    values = evaluations(stopped_run)
    best = max(values, key=lambda row: row[1])[0]
    assert best == values[-3][0]
    assert best % 7, "not a step at which a checkpoint is saved anyway"
    assert len(values) < 12
    assert complete_steps(stopped_run / "checkpoints") == [best, values[-1][0]]
    verb("evaluate", str(stopped_run), "--split", "val", "--name", "best")
    metrics = json.loads((stopped_run / "predictions" / "best.json").read_text())
    loss = next(row["loss"] for row in read_metrics(stopped_run / "metrics.jsonl") if row["kind"] == "eval")
    assert values[0][0] == best
    assert metrics["nll"] == pytest.approx(loss, abs=1e-4)
    assert read_predictions(stopped_run / "predictions" / "best.parquet").step == best
    last = values[-1][0]
    assert [load_run(stopped_run, step=step).step for step in (None, "best", "newest", last)] == [
        best,
        best,
        last,
        last,
    ]
    contract = run_contract(stopped_run, None)
    assert contract == open_network(stopped_run).contract
    assert contract.weights
    assert contract.weights.step == best
    assert weights_file(stopped_run).parent.name == f"{best:08d}"


def test_a_resumed_run_repeats_a_missed_evaluation_and_stops_at_the_same_step(
    arguments: list[str], stopped_run: Path
) -> None:
    """As if killed after the best checkpoint was written and before that step was evaluated."""
    resumed = Path(arguments[-1]) / "resumed"
    shutil.copytree(stopped_run, resumed)
    best, last = complete_steps(resumed / "checkpoints")
    shutil.rmtree(checkpoint_folder(resumed / "checkpoints", last))
    folder = checkpoint_folder(resumed / "checkpoints", best)
    (folder / MARKER).write_bytes(encode_marker({**read_marker(folder), "evaluations": []}))
    lines = (resumed / "metrics.jsonl").read_text().splitlines(keepends=True)
    (resumed / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] < best))
    verb("train", *arguments, "--run.name", "resumed")
    assert evaluations(resumed) == evaluations(stopped_run)
    assert complete_steps(resumed / "checkpoints") == [best, last]
    assert "is already complete" in verb("train", *arguments, "--run.name", "resumed").err


def test_a_resume_without_metrics_keeps_the_best_checkpoint_and_the_patience(
    arguments: list[str], stopped_run: Path
) -> None:
    run, (best, last) = Path(arguments[-1]) / "lost", complete_steps(stopped_run / "checkpoints")
    stop = {"rank": 0, "place": "step", "count": best + 3, "action": "SIGTERM"}
    launch(1, "train", *arguments, "--run.name", run.name, expect=75, inject=stop)
    (run / "metrics.jsonl").unlink()
    assert "has lost 1 of 1 evaluations" in verb("train", *arguments, "--run.name", run.name).err
    assert evaluations(run) == evaluations(stopped_run)[1:]
    assert complete_steps(run / "checkpoints") == [best, last]
    assert load_run(run, step="best").step == best
