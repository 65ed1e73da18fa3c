"""Text for a terminal."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

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
        try:
            full_list.parent.mkdir(parents=True, exist_ok=True)
            full_list.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            rest = f"all listed in {full_list}"
        except OSError as error:
            rest = f"which cannot be listed in {full_list} ({error.strerror})"
        print(f"… and {len(lines) - LISTED} more, {rest}", file=sys.stderr)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint with the known name that is nearest to ``name``: `` (did you mean NAME?)``, or nothing."""
    known = list(known)
    last_parts = [other for other in known if other.rpartition(".")[2] == name.lstrip("-")]  # lr → optim.lr
    matches = last_parts or difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f" (did you mean {matches[0]}?)" if matches else ""


def in_words(annotation: Any) -> str:
    """What a type annotation allows, for a message: ``float | None`` is ``a number or null``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return in_words(arguments[0])
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(map(in_words, arguments))
    if origin in (list, tuple):
        count = "" if origin is list or Ellipsis in arguments else f"{len(arguments)} "
        items = {int: "integers", float: "numbers", str: "texts"}.get(arguments[0], "values")
        return f"a list of {count}{items}"
    words = {str: "text", int: "an integer", float: "a number", bool: "true or false", NoneType: "null", Path: "a path"}
    return words.get(origin or annotation, "a mapping, such as {key: value}")
