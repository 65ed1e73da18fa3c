"""How a section refuses a value."""

from __future__ import annotations

from brain_dist.errors import UserError


def require(condition: bool, setting: str, value: object, requirement: str) -> None:
    """Raise a :class:`UserError` that names the setting, its value and the requirement, unless ``condition`` holds."""
    if not condition:
        shown = list(value) if isinstance(value, tuple) else value
        raise UserError(f"{setting}={shown}: {requirement}")
