"""What the data cannot carry is refused in words, which stand where the number would stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Refusal(Exception):
    """A test or an interval that these data cannot carry; the text is the reason, shown instead of the number."""


def or_refusal(function: Callable[..., dict[str, Any]], *arguments: Any, **settings: Any) -> dict[str, Any]:
    """The result of ``function``, or ``{"refused": reason}``."""
    try:
        return function(*arguments, **settings)
    except Refusal as refusal:
        return {"refused": str(refusal)}
