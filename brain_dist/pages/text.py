"""Numbers and names as a page shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

_DISPLAY_NAMES = {"notumor": "no tumour", "pituitary": "pituitary tumour"}


def percent(value: float | None, digits: int = 1) -> str:
    """0.912 → "91.2 %", None → a dash. Values just below 1 or above 0 are not rounded to 100 or 0."""
    if value is None:
        return "–"
    text = f"{100 * value:.{digits}f}"
    if value < 1 and float(text) == 100:
        text = f">\u00a0{100 - 10**-digits:.{digits}f}"
    elif value > 0 and float(text) == 0:
        text = f"<\u00a0{10**-digits:.{digits}f}"
    return f"{text}\u00a0%"


def number(value: float | None, digits: int = 3) -> str:
    """0.9121 → "0.912", None → a dash. Values just below 1 are not rounded to 1."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return f">\u00a0{1 - 10**-digits:.{digits}f}" if value < 1 and float(text) == 1 else text


def interval_text(interval: Mapping[str, Any], write: Callable[[float], str] = percent) -> str:
    """{"interval": [0.9, 1.0], "interval_of": "Wilson"} → "90.0 % to 100.0 % (Wilson)", or why there is none.

    Intervals of other methods have no method in brackets; the text beside them names it.
    """
    if "refused" in interval:
        return f"no interval: {interval['refused']}"
    low, high = (write(limit) for limit in interval["interval"])
    return f"{low} to {high}{' (Wilson)' if interval['interval_of'] == 'Wilson' else ''}"


def display_name(name: str) -> str:
    """The name of a class or dataset for display: "notumor" → "no tumour"."""
    return _DISPLAY_NAMES.get(name, name.replace("_", " "))


def listing(names: Sequence[str], word: str = "and") -> str:
    """["a", "b", "c"] → "a, b and c"."""
    return f" {word} ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
