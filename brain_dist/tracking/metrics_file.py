"""``metrics.jsonl``: one JSON row an optimiser step or an evaluation."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


METRICS = "metrics.jsonl"


def truncate_metrics(path: Path, first_step: int) -> None:
    """Keep the lines of finished steps only, so that a resumed run tells each step once."""
    if not path.exists():
        return
    # a train line names the step it made; an evaluation names how many steps were done
    kept = [
        json.dumps(row)
        for row in complete_rows(path)
        if row["step"] < first_step or (row["kind"] == "eval" and row["step"] <= first_step)
    ]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    temporary.replace(path)


def complete_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without the line that a killed process was writing."""
    rows = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows
