"""Stages ``profile`` and ``train``: the product's commands."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu.frame import Check
from benchmarks.gpu.settings import command, common_settings

PROFILE_KEYS = ("images_per_s", "step", "mfu", "flops_per_image", "matrix_rate", "joules_per_image", "power",
                "together", "alone", "memory", "verdict", "loaders")  # fmt: skip
METRICS = ("accuracy", "f1_macro", "auc_macro", "kappa", "n")
SECONDS_PER_EPOCH = 3.4  # estimate for 3,193 images of 160² on an H100
RESERVE = 45  # seconds for the start and the evaluations


def run_profile(check: Check) -> None:
    """``brain-dist profile --compare``: stages of a step, MFU, power, energy, loaders."""
    sizes, out = check.sizes, check.kit / "profile.json"
    settings = {
        **common_settings(check),
        "run.name": "profile",
        "data.size": sizes.size,
        "model.name": sizes.model,
        "model.drop_path": 0.2,
        "train.global_batch": sizes.batch,
        "train.micro_batch": sizes.batch,
    }

    def profile() -> dict[str, Any]:
        options = ("--steps", str(sizes.steps), "--out", str(out), "--compare")
        printed = run_command(command("profile", *options, settings=settings), timeout=check.seconds - 3)
        measured = json.loads(out.read_text())
        return {**{key: measured.get(key) for key in PROFILE_KEYS}, "printed": printed[-3500:]}

    check.attempt("brain-dist profile", profile)


def run_train(check: Check) -> None:
    """Train from random weights for the time that is left, then evaluate the test split."""
    name = f"scratch-{int(time.time())}"
    run, epochs = check.kit / "runs" / name, 1
    if not check.dry:
        epochs = max(4, min(60, int((check.seconds - RESERVE) / SECONDS_PER_EPOCH)))
    settings = {**common_settings(check), "run.name": name, **recipe(check, epochs)}

    def train() -> dict[str, Any]:
        start = time.monotonic()
        with _gpu_power(check) as power:
            run_command(command("train", settings=settings))
        seconds = time.monotonic() - start
        return {"epochs": epochs, "seconds": seconds, **summarise(run / "metrics.jsonl"), **power}

    def evaluate() -> dict[str, Any]:
        printed = run_command(command("evaluate", str(run)))
        metrics = json.loads((run / "predictions" / "test.json").read_text())
        return {**{key: metrics.get(key) for key in METRICS}, "printed": printed[-1500:]}

    if check.attempt("from scratch", train) is not None:
        check.attempt("test split", evaluate)


def recipe(check: Check, epochs: int) -> dict[str, Any]:
    """Settings to train from random weights in a few minutes."""
    return {
        "data.size": 32 if check.dry else 160,
        "data.head_crop": True,
        "augment.scale": [0.7, 1.0],
        "augment.rotate": 15,
        "model.name": check.sizes.model,
        "model.options": '{"ls_init_value": 1.0}',  # layer scale's 1e-6 needs many epochs to grow
        "model.drop_path": 0.1,
        "optim.lr": 4e-4,
        "optim.warmup_epochs": 2 if epochs > 8 else 0.5,
        "optim.label_smoothing": 0.05,
        "optim.ema": 0.99,
        "train.epochs": epochs,
        "train.global_batch": 64,
        "train.micro_batch": 64,
        "train.eval_every": max(1, epochs // 4),
        "train.save_every": 1_000_000,
    }


def summarise(metrics: Path) -> dict[str, Any]:
    """Steps, speed, memory, last loss and validation results of a run."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "train"]
    return {
        "steps": len(steps),
        "images_per_s_median": statistics.median(row["images_per_s"] for row in steps),
        "memory_gib": steps[-1]["memory_gib"],
        "last_loss": steps[-1]["loss"],
        "val": [[row["step"], row["accuracy"], row["f1_macro"]] for row in rows if row["kind"] == "eval"],
    }


def run_command(words: list[str], timeout: float | None = None) -> str:
    """Run a command and return its standard output.

    Raises:
        RuntimeError: it failed; the message is the end of its error output.
    """
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-1200:])
    return done.stdout


@contextmanager
def _gpu_power(check: Check) -> Iterator[dict[str, float]]:
    """Sample power and utilisation of the GPU during a block; yields a dict that is filled at its end."""
    means: dict[str, float] = {}
    if check.dry:
        yield means
        return
    samples = check.kit / "watts.csv"
    query = ["nvidia-smi", "--query-gpu=power.draw,utilization.gpu", "--format=csv,noheader,nounits", "-lms", "250"]
    with samples.open("w") as file:
        process = subprocess.Popen(query, stdout=file)
        try:
            yield means
        finally:
            process.terminate()
            process.wait()
    lines = samples.read_text().splitlines()[:-1]  # the last one may be incomplete
    rows = [line.split(",") for line in lines if "N/A" not in line]
    if rows:
        means["watts_mean"] = statistics.fmean(float(row[0]) for row in rows)
        means["busy_mean"] = statistics.fmean(float(row[1]) for row in rows)
