"""The attempts of a run: ``attempts.jsonl`` has a line for each start, and a requeue loop that gains nothing ends."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from brain_dist.errors import Fault

FILE = "attempts.jsonl"
# A signal during the start-up still makes one step before it saves. So many attempts of one job that made no more than
# that each are a loop: a time limit shorter than its warning, a checkpoint further away than the next pre-emption.
LOOP = 3


def begin(run: Path, step: int) -> None:
    """Note that an attempt begins at ``step``; the main rank alone calls.

    Raises:
        Fault: SLURM started this job again and again without getting anywhere.
    """
    job = os.environ.get("SLURM_JOB_ID")
    before = read(run)
    same = [row["step"] for row in before if job is not None and row["job"] == job][-LOOP:]
    run.mkdir(parents=True, exist_ok=True)
    row = {"attempt": len(before) + 1, "step": step, "job": job, "time": round(time.time(), 3)}
    with (run / FILE).open("a") as file:
        file.write(json.dumps(row) + "\n")
    if len(same) == LOOP and step - same[0] <= LOOP:
        raise Fault(
            f"the last {LOOP} attempts of job {job} brought {run} from step {same[0]} to {step}; not going on, so that"
            " it does not requeue for ever: set train.save_every lower, or give sbatch a --time well above --signal's"
            " seconds, and submit again"
        )


def read(run: Path) -> list[dict[str, Any]]:
    """All attempts so far, oldest first; a line that a crash cut short is left out."""
    try:
        lines = (run / FILE).read_text().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
