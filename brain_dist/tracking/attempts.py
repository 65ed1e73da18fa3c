"""The attempts of a run: a line in ``attempts.jsonl`` for each start, and an end to requeue loops without progress."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from brain_dist.common.files import write_atomically
from brain_dist.errors import Fault

FILE = "attempts.jsonl"
# A signal before the first step ends an attempt, a later one leads to a save. If this many attempts of a job made no
# more than one step each, the job loops: its time limit is shorter than its warning, or a checkpoint is further away
# than the next preemption.
MAX_ATTEMPTS_WITHOUT_PROGRESS = 3


def begin(run: Path, step: int) -> None:
    """Record that an attempt starts at ``step``. Only the main rank calls this.

    Raises:
        Fault: SLURM restarted this job several times without progress.
    """
    job = os.environ.get("SLURM_JOB_ID")
    attempts = read(run)
    run.mkdir(parents=True, exist_ok=True)
    row = {"attempt": len(attempts) + 1, "step": step, "job": job, "time": round(time.time(), 3)}
    write_atomically(run / FILE, "".join(json.dumps(each) + "\n" for each in [*attempts, row]))
    limit = MAX_ATTEMPTS_WITHOUT_PROGRESS
    starts = [row["step"] for row in attempts if job is not None and row["job"] == job][-limit:]
    if len(starts) == limit and step - starts[0] <= limit:
        raise Fault(
            f"the last {limit} attempts of job {job} brought {run} from step {starts[0]} to {step}; stopped to prevent"
            " an endless requeue: set a smaller train.save_every, or give sbatch a --time well above --signal's"
            " seconds, and submit again"
        )


def read(run: Path) -> list[dict[str, Any]]:
    """All attempts so far, oldest first, without a line that a crash left incomplete."""
    return complete_rows(run / FILE)


def complete_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, without a line that a killed process left incomplete; empty if it is missing."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows
