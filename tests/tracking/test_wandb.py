"""What W&B receives of a run: read from the files that wandb itself wrote, and uploaded with wandb's own sync."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, command, read_metrics, verb
from PIL import Image
from wandb_files import history, records

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")


@pytest.fixture(scope="module")
def run(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two attempts: the first is stopped by the file STOP, the second trains to the end."""
    runs = tmp_path_factory.mktemp("runs")
    batch = ["--train.global_batch", "24", "--train.micro_batch", "12", "--train.epochs", "2"]
    output = ["--run.dir", str(runs), "--run.name", "seen", "--run.seed", "5", "--train.save_every", "3"]
    track = ["--track.wandb", "auto", "--track.group", "phantoms", "--track.examples", "6"]
    data = ["--data.shards", str(phantom_shards), "--train.precision", "fp32"]
    arguments = [*TINY, *data, *batch, *output, *track]
    (runs / "seen").mkdir()
    (runs / "seen" / "STOP").touch()
    verb("train", *arguments, expect=75, HOME=str(runs))
    verb("train", *arguments, HOME=str(runs))
    return runs / "seen"


@pytest.fixture(scope="module")
def folders(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_mtime)


def test_attempts_share_group_and_seed(folders: list[Path]) -> None:
    runs = [next(r.run for r in records(f) if r.WhichOneof("record_type") == "run") for f in folders]
    assert [run.run_group for run in runs] == ["phantoms", "phantoms"]
    assert [run.job_type for run in runs] == ["seed 5", "seed 5"]
    assert [run.display_name for run in runs] == ["seen", "seen (attempt 2)"]
    settings = {item.key: json.loads(item.value_json) for item in runs[1].config.update}
    assert settings["attempt"] == 2
    assert settings["optim"]["lr"] == 1e-4


def test_training_rows_equal_those_of_the_metrics_file(run: Path, folders: list[Path]) -> None:
    logged = [row for folder in folders for row in history(folder) if "train/loss" in row]
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"]
    assert len(logged) == len(rows) == 10
    assert logged[0]["_step"] == 0
    for log, row in zip(logged, rows, strict=True):
        assert log["step"] == row["step"]
        for name in ("loss", "lr", "grad_norm", "images_per_s", "memory_gib"):
            assert log[f"train/{name}"] == pytest.approx(row[name])
    assert 0.1 < logged[0]["train/memory_gib"] < 8


def test_an_evaluation_has_class_metrics_confusion_matrix_and_examples(run: Path, folders: list[Path]) -> None:
    log = [row for row in history(folders[-1]) if "val/loss" in row][-1]
    row = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "eval"][-1]
    for name in CLASSES:
        assert log[f"val/{name}/sensitivity"] == pytest.approx(row["per_class"][name]["sensitivity"])
    table = json.loads((folders[-1] / "files" / log["val/confusion_table/path"]).read_text())
    counts = np.zeros((4, 4), int)
    for true, predicted, count in table["data"]:
        counts[CLASSES.index(true), CLASSES.index(predicted)] = count
    assert counts.tolist() == row["confusion"]

    assert log["val/examples/count"] == 6
    captions = log["val/examples/captions"]
    errors = sum(row["per_class"][name]["n"] for name in CLASSES) - np.trace(counts)
    wrong = [c.split(": ")[1].split(",")[0] != c.split("predicted ")[1].split(" at")[0] for c in captions]
    assert wrong == [True] * min(6, errors) + [False] * max(0, 6 - errors)
    with Image.open(folders[-1] / "files" / log["val/examples/filenames"][0]) as image:
        assert image.size == (32, 32)
        assert np.asarray(image).std() > 5, "the image is not blank"


class Server(BaseHTTPRequestHandler):
    """A W&B server that refuses every request."""

    def do_POST(self) -> None:
        self.server.requests.append(self.path)  # type: ignore[attr-defined]
        self.send_response(401)
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.requests = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_sync_lists_complete_runs_and_skips_those_being_written(run: Path, folders: list[Path], tmp_path: Path) -> None:
    output = verb("sync", str(run.parent), "--dry-run").out
    assert [line for line in output.splitlines() if line.startswith("would upload")] == [
        f"would upload {folder}" for folder in sorted(folders)
    ]
    (folders[0] / "FINISHED").unlink()  # as if its process still ran
    log = next(folders[0].glob("*.wandb"))
    try:
        assert f"{folders[0]} is still being written" in verb("sync", str(run), "--dry-run").out
        os.utime(log, (time.time() - 3600,) * 2)  # as if killed an hour ago
        assert f"would upload {folders[0]}" in verb("sync", str(run), "--dry-run").out
        (folders[0] / f"{log.name}.synced").touch()
        assert f"would upload {folders[0]}" not in verb("sync", str(run), "--dry-run").out
    finally:
        (folders[0] / "FINISHED").touch()
        (folders[0] / f"{log.name}.synced").unlink(missing_ok=True)
    no_key = verb("sync", str(run), expect=2, HOME=str(tmp_path))
    assert "wandb login" in no_key.err


def test_sync_uses_wandb_and_reports_a_failed_upload(
    run: Path, folders: list[Path], server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    address = f"http://127.0.0.1:{server.server_address[1]}"
    result = verb("sync", str(run), expect=1, HOME=str(tmp_path), WANDB_API_KEY="0" * 40, WANDB_BASE_URL=address)
    assert server.requests, "wandb sent no request"  # type: ignore[attr-defined]
    assert f"did not upload 2 of {len(folders)} runs" in result.err
    assert not list(run.rglob("*.synced"))


def test_an_account_on_a_server_of_ones_own_is_found(run: Path, server: ThreadingHTTPServer, tmp_path: Path) -> None:
    """As `wandb login --host` leaves it: the server in the settings, its key in .netrc. WANDB_MODE is for trainings."""
    place = f"127.0.0.1:{server.server_address[1]}"
    (tmp_path / ".netrc").write_text(f"machine {place}\n  login user\n  password {'0' * 40}\n")
    (tmp_path / ".netrc").chmod(0o600)
    settings = tmp_path / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[default]\nbase_url = http://{place}\n")
    result = verb("sync", str(run), expect=1, HOME=str(tmp_path), WANDB_MODE="offline")
    assert "wandb sync did not upload" in result.err
    assert server.requests  # type: ignore[attr-defined]


WITHOUT_NETWORK = """
import pathlib, sys, time
from brain_dist.config import Config
from brain_dist.tracking import wandb_log
wandb_log.INIT_TIMEOUT = 3.0
log = wandb_log.open_log(Config(), pathlib.Path(sys.argv[1]), 1)
for step in range(5):
    log.log_row({"kind": "train", "step": step, "loss": 1.0})
classes = {"a": {"f1": 0.5}, "b": {"f1": None}}
row = {"kind": "eval", "split": "val", "step": 5, "loss": 1.0, "per_class": classes, "confusion": [[3, 1], [2, 4]]}
log.log_row(row)
assert log.finish(0) is None
"""


def test_without_network_and_home_all_rows_are_logged_offline_with_one_line(tmp_path: Path) -> None:
    variables = {"HOME": "/proc/nohome", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    result = command([sys.executable, "-c", WITHOUT_NETWORK, str(tmp_path)], **variables)
    assert result.out == ""
    assert len(result.err.splitlines()) == 1, result.err
    assert "logging offline, as W&B did not answer" in result.err
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    rows = history(folder)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert rows[-1]["val/a/f1"] == 0.5
    assert "val/confusion_table/path" in rows[-1]
    assert (folder / "FINISHED").exists()
    assert (tmp_path / "wandb" / "data").is_dir()
