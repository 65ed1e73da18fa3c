"""Long lists on a terminal."""

from __future__ import annotations

import sys
from pathlib import Path

LISTED = 50  # lines that are printed


def print_list(lines: list[str], full_list: Path) -> None:
    """Print lines on stderr; if there are many, the first ones, and write all of them to ``full_list``."""
    for line in lines[:LISTED]:
        print(line, file=sys.stderr)
    if len(lines) > LISTED:
        full_list.parent.mkdir(parents=True, exist_ok=True)
        full_list.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        print(f"… and {len(lines) - LISTED} more, all listed in {full_list}", file=sys.stderr)
