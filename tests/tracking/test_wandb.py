"""What W&B gets of a run: read back from the files that wandb itself wrote, and handed to wandb's own sync."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, read_metrics, verb
from PIL import Image
from wandb_files import history, records

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")


@pytest.fixture(scope="module")
def run(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two attempts: one step short of its end, killed there by hand, then to its end."""
    runs = tmp_path_factory.mktemp("runs")
    words = [
        *(*TINY, "--data.shards", str(phantom_shards), "--run.dir", str(runs), "--run.name", "seen", "--run.seed", "5"),
        *(
            "--train.global_batch",
            "24",
            "--train.micro_batch",
            "12",
            "--train.precision",
            "fp32",
            "--train.epochs",
            "2",
        ),
        *("--track.wandb", "auto", "--track.group", "phantoms", "--track.examples", "6", "--train.save_every", "3"),
    ]
    (runs / "seen").mkdir()
    (runs / "seen" / "STOP").touch()
    verb("train", *words, expect=75, HOME=str(runs))
    verb("train", *words, HOME=str(runs))
    return runs / "seen"


@pytest.fixture(scope="module")
def folders(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_mtime)


def test_each_attempt_is_a_run_of_the_same_group_and_seed(folders: list[Path]) -> None:
    told = [next(r.run for r in records(f) if r.WhichOneof("record_type") == "run") for f in folders]
    assert [one.run_group for one in told] == ["phantoms", "phantoms"]
    assert [one.job_type for one in told] == ["seed 5", "seed 5"]
    assert [one.display_name for one in told] == ["seen", "seen (attempt 2)"]
    settings = {item.key: json.loads(item.value_json) for item in told[1].config.update}
    assert settings["attempt"] == 2
    assert settings["optim"]["lr"] == 1e-4


def test_training_rows_are_those_of_the_metrics_file(run: Path, folders: list[Path]) -> None:
    rows = [row for folder in folders for row in history(folder) if "train/loss" in row]
    ours = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"]
    assert len(rows) == len(ours) == 10
    assert {row["_step"] for row in rows[:1]} == {0}
    for theirs, mine in zip(rows, ours, strict=True):
        assert theirs["step"] == mine["step"]
        for name in ("loss", "lr", "grad_norm", "images_per_s", "memory_gib"):
            assert theirs[f"train/{name}"] == pytest.approx(mine[name])
    assert 0.1 < rows[0]["train/memory_gib"] < 8


def test_an_evaluation_has_classes_confusion_and_pictures(run: Path, folders: list[Path], phantom_shards: Path) -> None:
    row = [row for row in history(folders[-1]) if "val/loss" in row][-1]
    mine = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "eval"][-1]
    for name in CLASSES:
        assert row[f"val/{name}/sensitivity"] == pytest.approx(mine["per_class"][name]["sensitivity"])
    table = json.loads((folders[-1] / "files" / row["val/confusion_table/path"]).read_text())
    counts = np.zeros((4, 4), int)
    for true, predicted, count in table["data"]:
        counts[CLASSES.index(true), CLASSES.index(predicted)] = count
    assert counts.tolist() == mine["confusion"]

    assert row["val/examples/count"] == 6
    captions = row["val/examples/captions"]
    errors = sum(mine["per_class"][name]["n"] for name in CLASSES) - np.trace(counts)
    wrong = [c.split(": ")[1].split(",")[0] != c.split("named ")[1].split(" at")[0] for c in captions]
    assert wrong == [True] * min(6, errors) + [False] * max(0, 6 - errors)
    with Image.open(folders[-1] / "files" / row["val/examples/filenames"][0]) as picture:
        assert picture.size == (32, 32)
        assert np.asarray(picture).std() > 5, "a picture, not a blank"


class Server(BaseHTTPRequestHandler):
    """Stands where W&B's server would, and refuses everybody."""

    def do_POST(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(401)
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    made.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()


def test_sync_finds_what_waits_and_leaves_what_is_being_written(run: Path, folders: list[Path], tmp_path: Path) -> None:
    found = verb("sync", str(run.parent), "--dry-run").out
    assert [line for line in found.splitlines() if line.startswith("would upload")] == [
        f"would upload {folder}" for folder in sorted(folders)
    ]
    (folders[0] / "FINISHED").unlink()  # as if its process were still there
    log = next(folders[0].glob("*.wandb"))
    try:
        assert f"{folders[0]} is still being written" in verb("sync", str(run), "--dry-run").out
        os.utime(log, (time.time() - 3600,) * 2)  # killed an hour ago
        assert f"would upload {folders[0]}" in verb("sync", str(run), "--dry-run").out
        (folders[0] / f"{log.name}.synced").touch()
        assert f"would upload {folders[0]}" not in verb("sync", str(run), "--dry-run").out
    finally:
        (folders[0] / "FINISHED").touch()
        (folders[0] / f"{log.name}.synced").unlink(missing_ok=True)
    no_key = verb("sync", str(run), expect=2, HOME=str(tmp_path))
    assert "wandb login" in no_key.err


def test_sync_goes_through_wandb_and_says_when_it_brought_nothing_up(
    run: Path, folders: list[Path], server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    address = f"http://127.0.0.1:{server.server_address[1]}"
    done = verb("sync", str(run), expect=1, HOME=str(tmp_path), WANDB_API_KEY="0" * 40, WANDB_BASE_URL=address)
    assert server.asked, "wandb asked the server"  # type: ignore[attr-defined]
    assert f"left 2 of {len(folders)} runs behind" in done.err
    assert not list(run.rglob("*.synced"))
