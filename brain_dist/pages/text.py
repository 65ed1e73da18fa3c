"""Numbers as a page shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def percent(value: float | None, digits: int = 1) -> str:
    """0.912 → "91.2 %"; undefined → a dash. Never rounds up to 100 or down to 0 what is not exactly that."""
    if value is None:
        return "–"
    shown = f"{100 * value:.{digits}f}"
    if value < 1 and float(shown) == 100:
        shown = f">\u00a0{100 - 10**-digits:.{digits}f}"
    elif value > 0 and float(shown) == 0:
        shown = f"<\u00a0{10**-digits:.{digits}f}"
    return f"{shown}\u00a0%"


def number(value: float | None, digits: int = 3) -> str:
    """A plain number, undefined as a dash; like :func:`percent` it never rounds up to 1."""
    if value is None:
        return "–"
    shown = f"{value:.{digits}f}"
    return f">\u00a0{1 - 10**-digits:.{digits}f}" if value < 1 and float(shown) == 1 else shown
