"""Command-line parsing that ``scaling run`` and ``scaling predict`` share."""

from __future__ import annotations

import argparse
from typing import NoReturn

from brain_dist.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one :class:`UserError` line."""

    def error(self, message: str) -> NoReturn:
        """Raise :class:`UserError`."""
        raise UserError(f"{message}; `{self.prog} --help` lists every option")


def integers(option: str, text: str, *, minimum: int) -> list[int]:
    """Parse ``1,2,4`` into a sorted list without duplicates.

    Raises:
        UserError: ``text`` has another format or a value below ``minimum``; the message names ``option``.
    """
    try:
        values = sorted({int(word) for word in text.split(",")})
    except ValueError:
        raise UserError(f"{option} {text}: must be integers separated by commas, such as 1,2,4") from None
    if values[0] < minimum:
        raise UserError(f"{option} {text}: must be ≥ {minimum}")
    return values
