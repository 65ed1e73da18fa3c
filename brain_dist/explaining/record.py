"""The files that ``brain-dist explain`` writes, read again for the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brain_dist.common.records import read_record
from brain_dist.errors import UserError

FOLDER = "explanations"
PAGE = "explanations.html"
SCHEMA = 1


def read_summary(run: Path, name: str) -> dict[str, Any] | None:
    """The summary of the explanations of the predictions ``name`` in the folder of a run, or None if there is none.

    Raises:
        UserError: the file cannot be read.
    """
    path = run / FOLDER / f"{name}.json"
    if not path.is_file():
        return None
    advice = f"write it again with `brain-dist explain {run}`"
    keys = {"schema": int, "step": int, "dataset_version": str, "measures": dict}
    summary = read_record(path, advice, keys)
    if summary["schema"] != SCHEMA:
        raise UserError(f"{path} has schema {summary['schema']}, this program reads {SCHEMA}; {advice}")
    return summary
