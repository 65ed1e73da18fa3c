"""The files that ``brain-dist explain`` writes, read again for the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    try:
        summary = json.loads(path.read_text())
        if summary["schema"] != SCHEMA:
            raise ValueError(f"schema {summary['schema']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); write it again with `brain-dist explain {run}`") from None
    return summary
