"""``metrics.jsonl``: one JSON row per optimiser step or evaluation."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from brain_dist.common.files import write_atomically

METRICS = "metrics.jsonl"


def truncate_metrics(path: Path, first_step: int) -> None:
    """Remove the rows of steps from ``first_step`` on, which a resumed run repeats, so that each step has one row."""
    if not path.exists():
        return
    # a train row has the index of its step; an evaluation row has the number of completed steps
    rows = [
        row
        for row in complete_rows(path)
        if row["step"] < first_step or (row["kind"] == "eval" and row["step"] <= first_step)
    ]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def complete_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, without a line that a killed process left incomplete; empty if it is missing."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows
