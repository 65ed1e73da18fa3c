"""Text that is safe to print."""

from __future__ import annotations

import os


def printable(path: str) -> str:
    """A path as valid, one-line UTF-8: undecodable bytes and control characters are spelt out (``\\xff``, ``\\n``)."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
