"""Stage ``resume``: a run that is killed, then stopped, then resumed, beside one that is not interrupted."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.frame import Check
from benchmarks.gpu.settings import command, common_settings

BATCH = 128
EXIT_CODES = (-signal.SIGKILL, 75, 0)  # of a run that is killed, asked to stop, and resumed to its end


def run_resume(check: Check) -> None:
    """Compare the checkpoints of both runs bit for bit."""
    started = int(time.time())  # a repeated stage must not continue the runs of the last one
    settings = resume_settings(check)

    def train_whole() -> dict[str, Any]:
        start = time.monotonic()
        code, rows = train(check, f"whole-{started}", settings)
        return {"code": code, "seconds": time.monotonic() - start, "lines": rows}

    def train_interrupted() -> dict[str, Any]:
        name = f"broken-{started}"
        kills = ((12, signal.SIGKILL), (15 if check.dry else 35, signal.SIGTERM), None)
        codes = tuple(train(check, name, settings, kill)[0] for kill in kills)
        same = checkpoint_hashes(check, f"whole-{started}") == checkpoint_hashes(check, name)
        return {"codes": str(list(codes)), "same_bits": same, "ok": codes == EXIT_CODES and same}

    if check.attempt("uninterrupted", train_whole) is not None:
        check.attempt("killed, stopped, resumed", train_interrupted)


def resume_settings(check: Check) -> dict[str, Any]:
    """Settings of both runs: about 24 steps (dry) or 50 to 60, as many whole epochs as fit."""
    from brain_dist.store.dataset import open_dataset

    steps_per_epoch = -(-len(open_dataset(check.shards).rows("train")) // BATCH)
    return {
        **common_settings(check),
        "data.size": 32 if check.dry else 128,
        "model.name": check.sizes.small_model,
        "model.drop_path": 0.1,
        "optim.ema": 0.99,
        "train.global_batch": BATCH,
        "train.micro_batch": BATCH,
        "train.epochs": max(1, (24 if check.dry else 60) // steps_per_epoch),
        "train.eval_every": 0,
        "train.save_every": 5,
        "run.deterministic": True,
    }


def train(
    check: Check, name: str, settings: dict[str, Any], kill: tuple[int, signal.Signals] | None = None
) -> tuple[int, int]:
    """Start or resume a run.

    Args:
        check: the stage.
        name: name of the run.
        settings: its settings.
        kill: signal to send once metrics.jsonl has that number of rows.

    Returns:
        Exit code and number of rows of metrics.jsonl.

    Raises:
        RuntimeError: the run failed; the message is the end of its output.
    """
    metrics = check.kit / "runs" / name / "metrics.jsonl"
    process = subprocess.Popen(
        command("train", settings={"run.name": name, **settings}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while kill and process.poll() is None:
        if count_rows(metrics) >= kill[0]:
            process.send_signal(kill[1])
            break
        time.sleep(0.02)
    output = process.communicate()[1]
    if process.returncode not in EXIT_CODES:
        raise RuntimeError(output[-1200:])
    return process.returncode, count_rows(metrics)


def count_rows(path: Path) -> int:
    """Number of lines of a file; 0 if there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def checkpoint_hashes(check: Check, name: str) -> dict[str, str]:
    """Name and sha256 of each tensor file of the run's last checkpoint."""
    last = max((check.kit / "runs" / name / "checkpoints").glob("0*"))
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in last.glob("*.safetensors")}
    return {"step": last.name, **hashes}
