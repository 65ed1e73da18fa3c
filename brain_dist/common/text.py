"""Text that is safe to print."""

from __future__ import annotations

import os


def printable(path: str) -> str:
    r"""A path as one line of valid UTF-8: undecodable bytes and control characters are escaped (``\xff``, ``\n``)."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
