"""The ranges of numbers, and how a section refuses a value."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

from brain_dist.common.text import in_words
from brain_dist.errors import UserError

LARGEST = 2**63  # integers must fit into 64 bits; infinity and NaN are in no range


@dataclass(frozen=True)
class Range:
    """The range of a number or of each number of a tuple, as ``Annotated[float, Range(0, 1, "[)")]``.

    ``ends`` says which ends belong to the range: those beside a square bracket.
    """

    low: float = -LARGEST
    high: float = LARGEST
    ends: str = "[)"

    def __contains__(self, number: float) -> bool:
        above = number > self.low or (number == self.low and self.ends[0] == "[")
        return above and (number < self.high or (number == self.high and self.ends[1] == "]"))

    def __str__(self) -> str:
        if self.high == LARGEST:
            return "finite" if self.low == -LARGEST else f"≥ {self.low}"
        return f"in {self.ends[0]}{self.low}, {self.high}{self.ends[1]}"


Count = Annotated[int, Range(0)]
PositiveCount = Annotated[int, Range(1)]
BatchSize = Annotated[int, Range(1, 1_000_000, "[]")]
Probability = Annotated[float, Range(0, 1, "[]")]
Fraction = Annotated[float, Range(0, 1, "[)")]


@dataclass(frozen=True)
class Section:
    """Base of a section of settings: every value is set, every number finite and in the range of its annotation."""

    def __post_init__(self) -> None:
        for setting, annotation in get_type_hints(type(self), include_extras=True).items():
            value, limits = getattr(self, setting), range_of(annotation)
            name = f"{type(self).__name__.removesuffix('Config').lower()}.{setting}"
            allowed = in_words(annotation)
            require(value is not None or "null" in allowed, name, "null", f"must be {allowed}")
            for _, number in numbers(value):
                bound = " and < 2**63" if limits.high == LARGEST and not number < LARGEST else ""
                require(number in limits, name, value, f"must be {limits}{bound}")

    def _expand_home(self, *settings: str) -> None:
        """Replace ``~`` at the beginning of paths, which no shell does in a YAML file or in ``--run.dir=~/runs``."""
        for setting in settings:
            value = getattr(self, setting)
            paths = [value] if isinstance(value, str) else value or ()
            expanded = [os.path.expanduser(path) for path in paths]  # noqa: PTH111 (`~NAME` of an unknown user stays as it is)
            if value:
                object.__setattr__(self, setting, expanded[0] if isinstance(value, str) else tuple(expanded))


def range_of(annotation: Any) -> Range:
    """The range in an annotation; without one, every finite number."""
    return next((item for item in getattr(annotation, "__metadata__", ()) if isinstance(item, Range)), Range())


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """(name, number) of every number in nested dicts and sequences; the name of a nested one is ``outer.inner``."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from numbers(item, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def require(condition: bool, setting: str, value: object, requirement: str) -> None:
    """Raise a :class:`UserError` that names the setting, its value and the requirement, unless ``condition`` holds."""
    if not condition:
        shown = list(value) if isinstance(value, tuple) else value
        raise UserError(f"{setting}={shown}: {requirement}")
