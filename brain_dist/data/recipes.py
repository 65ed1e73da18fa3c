"""A recipe (YAML) says how a collection lies on disk; its keys are described in ``shards/README.md``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from brain_dist.data.index import SPLITS
from brain_dist.errors import UserError

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")


@dataclass(frozen=True)
class Part:
    """One dataset, or one published half of it: where its classes and its table of patients are."""

    dataset: str | None = None  # None: named after the source folder
    root: str = "."
    folders: dict[str, list[str]] = field(default_factory=dict)  # class → folders below root; empty: discover
    aliases: dict[str, list[str]] = field(default_factory=dict)
    ignore: list[str] = field(default_factory=list)
    published: str | None = None
    patients: dict[str, str] | None = None
    expected: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A whole recipe: description, classes in label order, parts."""

    name: str | None
    title: str
    source: str
    licence: str
    citation: str
    classes: tuple[str, ...]
    parts: tuple[Part, ...]


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key given twice is a mistake, not a silent override."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise UserError(
                    f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}: {key!r} is given twice"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_recipe(path: Path) -> Recipe:
    """Parse and check a recipe file; every mistake is a :class:`UserError` that names the file and the key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} cannot be read ({error}); the ones at hand are in shards/datasets/") from None
    loader = _StrictLoader(text)
    loader.name = str(path)
    try:
        content = loader.get_single_data()
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path} is not valid YAML: {error}") from None
    finally:
        loader.dispose()
    return parse_recipe(content, str(path))


def default_recipe(source: Path) -> Recipe:
    """The recipe for a folder per class; for a folder of phantoms, with its table of patients and without its masks."""
    if (source / "phantom.json").is_file():
        part = {"dataset": "phantom", "ignore": ["masks"],
                "patients": {"file": "patients.csv", "id": "id", "patient": "patient"}}  # fmt: skip
        about = {
            "title": "Made-up brain-MRI slices (phantoms)",
            "source": "brain_dist.shard phantom",
            "licence": "CC0-1.0",
        }
        return parse_recipe({"name": "phantom", **about, "parts": [part]}, "the phantom recipe")
    return parse_recipe({"parts": [{}]}, "the default recipe")


def parse_recipe(content: object, where: str) -> Recipe:
    """A recipe's YAML content → :class:`Recipe`; ``where`` names it in messages."""
    top = _mapping(content, where, {"name", "title", "source", "licence", "citation", "classes", "parts"})
    classes = tuple(_texts(top.get("classes", list(CLASSES)), f"{where}: classes"))
    if len(set(classes)) != len(classes) or not classes:
        raise UserError(f"{where}: classes must be one or more different names, got {list(classes)}")
    name = top.get("name")
    if name is not None:
        _safe(name, f"{where}: name")
    entries = top.get("parts")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{where}: parts must be a list with at least one entry")
    parts = tuple(_part(entry, f"{where}: parts[{number}]", classes) for number, entry in enumerate(entries))
    about = {
        key: _text(top.get(key, "not stated"), f"{where}: {key}") for key in ("title", "source", "licence", "citation")
    }
    return Recipe(name, classes=classes, parts=parts, **about)


def _part(entry: object, where: str, classes: tuple[str, ...]) -> Part:
    part = _mapping(
        entry, where, {"dataset", "root", "folders", "aliases", "ignore", "published", "patients", "expected"}
    )
    if part.get("dataset") is not None:
        _safe(part["dataset"], f"{where}: dataset")
    by_class = {
        key: _mapping(part.get(key, {}), f"{where}: {key}", set(classes)) for key in ("folders", "aliases", "expected")
    }
    folders, aliases = (
        {name: _texts(value, f"{where}: {key}: {name}") for name, value in by_class[key].items()}
        for key in ("folders", "aliases")
    )
    for name, count in by_class["expected"].items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise UserError(f"{where}: expected: {name} must be a count of images, got {count!r}")
    if part.get("published") not in (None, *SPLITS):
        raise UserError(f"{where}: published must be one of {', '.join(SPLITS)}, got {part['published']!r}")
    patients = part.get("patients")
    if patients is not None:
        columns = _mapping(patients, f"{where}: patients", {"file", "id", "patient"})
        patients = {key: _text(columns.get(key), f"{where}: patients: {key}") for key in ("file", "id", "patient")}
    root = _text(part.get("root", "."), f"{where}: root")
    inside = [
        root,
        *(folder for found in folders.values() for folder in found),
        *([patients["file"]] if patients else []),
    ]
    for path in inside:
        if path.startswith("/") or ".." in Path(path).parts:
            raise UserError(f"{where}: {path!r} must lie inside the source folder (no leading / and no ..)")
    ignore = _texts(part.get("ignore", []), f"{where}: ignore")
    return Part(
        part.get("dataset"), root, folders, aliases, ignore, part.get("published"), patients, by_class["expected"]
    )


def _mapping(value: object, where: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a mapping of keys to values, got {value!r}")
    for key in value:
        if key not in known:
            hint = " (put the word in quotes: YAML reads it as true/false)" if isinstance(key, bool) else ""
            raise UserError(f"{where}: unknown key {key!r}{hint}; known are {', '.join(sorted(known))}")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        hint = " (put it in quotes)" if value is not None else ""
        raise UserError(f"{where} must be text, got {value!r}{hint}")
    return value.strip()


def _texts(value: object, where: str) -> list[str]:
    return [_text(item, where) for item in (value if isinstance(value, list) else [value])]


def _safe(value: object, where: str) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", value):
        raise UserError(f"{where} becomes part of file names: at most 40 letters, digits, _ and -, got {value!r}")
