"""YAML → dataclasses, strictly: no unknown or repeated key, no value of another type.

Every mistake is a one-line :class:`UserError` that gives the file, the line, the path to the key, and what is allowed
there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from brain_dist.common.text import in_words, nearest
from brain_dist.errors import UserError

T = TypeVar("T")


class YamlMapping(dict[Any, Any]):
    """A YAML mapping that knows the line of each key."""

    lines: dict[Any, int]


class Location(NamedTuple):
    """A place in a YAML file, for messages: ``FILE:LINE: PATH``."""

    file: str
    line: int | None = None
    path: str = ""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.path}" if self.path else place

    def inside(self, mapping: object, key: object) -> Location:
        """The place of a key of the mapping at this place."""
        line = mapping.lines.get(key, self.line) if isinstance(mapping, YamlMapping) else self.line
        return Location(self.file, line, f"{self.path}: {key}" if self.path else str(key))


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a repeated key is an error, not a silent override, and mappings know their lines."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; a text that only looks like a date or a number is an error at its line."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, str) and not value.isascii():
                # JSON writes a character beyond U+FFFF as two escapes, which YAML takes for two characters
                value = value.encode("utf-16", "surrogatepass").decode("utf-16")
            return value
        except (ValueError, LookupError, AttributeError) as error:
            problem = f"{node.value!r:.80} ({error}); put a text in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_located_map(self, node: yaml.MappingNode) -> Iterator[YamlMapping]:
        mapping = YamlMapping()
        yield mapping
        mapping.lines = {}
        for key_node, _ in node.value:
            key, mark = self.construct_object(key_node, deep=True), key_node.start_mark
            if isinstance(key_node, yaml.ScalarNode) and key in mapping.lines:
                raise UserError(f"{mark.name}:{mark.line + 1}: {key!r} is given twice")
            if isinstance(key_node, yaml.ScalarNode):
                mapping.lines[key] = mark.line + 1
        mapping.update(self.construct_mapping(node))


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _StrictLoader.construct_located_map)


def load_yaml(text: str, name: str) -> object:
    """The content of YAML ``text``; ``name`` is the file's name in messages.

    Raises:
        UserError: the text is not valid YAML.
    """
    try:
        loader = _StrictLoader(text)
    except yaml.reader.ReaderError as error:
        number = text[: error.position].count("\n") + 1
        raise UserError(f"{name}:{number}: not valid YAML: character {error.character!r}") from None
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{name}{line}: not valid YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise UserError(f"{name}: not valid YAML: it is nested too deeply") from None
    finally:
        loader.dispose()


def places_of_keys(content: YamlMapping, location: Location) -> dict[str, Location]:
    """File and line of each key of nested mappings, by its dotted name."""
    places = {}
    for key, value in content.items():
        name = f"{location.path}.{key}" if location.path else str(key)
        place = location.inside(content, key)
        places[name] = place._replace(path="")
        if isinstance(value, YamlMapping):
            places |= places_of_keys(value, place._replace(path=name))
    return places


def read_dataclass(kind: type[T], content: object, location: Location) -> T:
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
            place = location.inside(content, key)._replace(path=location.path)
            raise UserError(f"{place}: {unknown_key(key, names)}")
    values = {}
    for key, field in names.items():
        if key in mapping:
            values[field.name] = _read(types[field.name], mapping[key], location.inside(content, key))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{location}: the key {key!r} is missing")
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{location}: {error}") from None


def unknown_key(key: object, known: Iterable[str]) -> str:
    """The message for a key that is not among ``known``, with the nearest one that is."""
    known = list(known)
    return f"unknown key {key!r}{nearest(str(key), known)}; known keys: {', '.join(known)}"


def _read(kind: Any, value: object, location: Location) -> Any:
    """``value`` checked against the type ``kind``."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # X | None
        return None if value is None else _read(arguments[0], value, location)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{location} must be one of {', '.join(arguments)}, got {value!r}")
        return value
    if origin is dict:
        mapping = _mapping(value, location)
        for key in mapping:
            _read(str, key, location.inside(value, key)._replace(path=f"{location.path}: the key"))
        return {key.strip(): _read(arguments[1], item, location.inside(value, key)) for key, item in mapping.items()}
    if origin in (list, tuple):
        if not isinstance(value, list):
            if arguments[0] is not str:
                raise UserError(f"{location} must be a list, got {value!r}")
            return origin([_read(str, value, location)])
        places = [location._replace(path=f"{location.path}[{number}]") for number in range(len(value))]
        return origin(_read(arguments[0], item, place) for item, place in zip(value, places, strict=True))
    if kind in (str, int, float, bool):
        return _scalar(kind, value, location)
    return read_dataclass(kind, value, location)


def _scalar(kind: type, value: Any, location: Location) -> Any:
    text = value.strip() if isinstance(value, str) else value
    if kind is float and isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+e[-+]?\d+", text.lower()):
        return float(text)  # YAML reads 1e6, which lacks a dot or the sign of the exponent, as text
    if type(value) not in ((int, float) if kind is float else (kind,)) or text == "":
        hint = " (put it in quotes)" if kind is str and text not in (None, "") else ""
        if kind is str and isinstance(value, bool):
            hint = " (put it in quotes: YAML reads yes, no, on and off as true and false)"
        raise UserError(f"{location} must be {in_words(kind)}, got {value!r}{hint}")
    return kind(text)  # an integer may stand for a float


def _mapping(value: object, location: Location) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{location} must be a mapping of keys to values, got {value!r}")
    return value
