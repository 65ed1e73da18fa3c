"""YAML → dataclasses, strictly: no unknown or repeated key, no value of another type.

Every mistake is a one-line :class:`UserError` that gives the file, the path to the key, and what is allowed there.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from brain_dist.errors import UserError

T = TypeVar("T")
_DESCRIPTIONS = {str: "text", int: "an integer", float: "a number", bool: "true or false"}


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a repeated key is an error, not a silent override."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        nodes = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        keys = [self.construct_object(key) for key in nodes]
        for number, (key, mark) in enumerate(zip(keys, (key.start_mark for key in nodes), strict=True)):
            if key in keys[:number]:
                raise UserError(f"{mark.name}, line {mark.line + 1}: {key!r} is given twice")
        return super().construct_mapping(node, deep)


def load_yaml(text: str, name: str) -> object:
    """The content of YAML ``text``; ``name`` is the file's name in messages.

    Raises:
        UserError: the text is not valid YAML.
    """
    loader = _StrictLoader(text)
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not valid YAML: {error}") from None
    finally:
        loader.dispose()


def read_dataclass(kind: type[T], content: object, location: str) -> T:
    """Build the dataclass ``kind`` from a YAML mapping.

    Field types may be text, numbers, booleans, ``Literal``, ``list[X]``, ``tuple[X, ...]``, ``dict[str, X]``, other
    dataclasses, and ``X | None``. A single text stands for a list of one. A key that is a Python keyword has a field
    with a trailing underscore. A ``ValueError`` of the dataclass becomes a :class:`UserError` at ``location``.
    """
    mapping = _mapping(content, location)
    names = {field.name.rstrip("_"): field for field in fields(kind)}  # type: ignore[arg-type]
    types = get_type_hints(kind)
    for key in mapping:
        if key not in names:
            raise UserError(f"{location}: {unknown_key(key, names)}")
    values = {}
    for key, field in names.items():
        if key in mapping:
            values[field.name] = _read(types[field.name], mapping[key], f"{location}: {key}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{location}: the key {key!r} is missing")
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{location}: {error}") from None


def unknown_key(key: object, known: Iterable[str]) -> str:
    """The message for a key that is not among ``known``, with the nearest one that is."""
    known = list(known)
    nearest = difflib.get_close_matches(str(key), known, n=1)
    suggestion = f", did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown key {key!r}{suggestion} (known keys: {', '.join(known)})"


def _read(kind: Any, value: object, location: str) -> Any:
    """``value`` checked against the type ``kind``."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # X | None
        return None if value is None else _read(arguments[0], value, location)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{location} must be one of {', '.join(arguments)}, got {value!r}")
        return value
    if origin is dict:
        keys = {_read(str, key, f"{location}: the key"): item for key, item in _mapping(value, location).items()}
        return {key: _read(arguments[1], item, f"{location}: {key}") for key, item in keys.items()}
    if origin in (list, tuple):
        if not isinstance(value, list):
            if arguments[0] is not str:
                raise UserError(f"{location} must be a list, got {value!r}")
            return origin([_read(str, value, location)])
        return origin(_read(arguments[0], item, f"{location}[{number}]") for number, item in enumerate(value))
    if kind in _DESCRIPTIONS:
        return _scalar(kind, value, location)
    return read_dataclass(kind, value, location)


def _scalar(kind: type, value: Any, location: str) -> Any:
    text = value.strip() if isinstance(value, str) else value
    if type(value) not in ((int, float) if kind is float else (kind,)) or text == "":
        hint = " (put it in quotes)" if kind is str and text not in (None, "") else ""
        if kind is str and isinstance(value, bool):
            hint = " (put it in quotes: YAML reads yes, no, on and off as true and false)"
        raise UserError(f"{location} must be {_DESCRIPTIONS[kind]}, got {value!r}{hint}")
    return kind(text)  # an integer may stand for a float


def _mapping(value: object, location: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{location} must be a mapping of keys to values, got {value!r}")
    return value
