"""Text for a terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

LISTED = 50  # lines of a list that are printed


def printable(path: str) -> str:
    r"""A path as one line of valid UTF-8: undecodable bytes and control characters are escaped (``\xff``, ``\n``)."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def print_list(lines: list[str], full_list: Path) -> None:
    """Print lines on stderr; if there are many, the first ones, and write all of them to ``full_list``."""
    for line in lines[:LISTED]:
        print(line, file=sys.stderr)
    if len(lines) > LISTED:
        full_list.parent.mkdir(parents=True, exist_ok=True)
        full_list.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        print(f"… and {len(lines) - LISTED} more, all listed in {full_list}", file=sys.stderr)
