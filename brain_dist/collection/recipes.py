"""A recipe (YAML) says how a collection lies on disk; its keys are described in ``shards/README.md``."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from brain_dist.collection.pixels import WINDOW
from brain_dist.collection.spellings import SPLITS
from brain_dist.errors import UserError

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
FORMATS = ("images", "mat", "dicom", "nifti")
SLICES = {"axis": 2, "from": 0.0, "to": 1.0, "step": 1}  # of a NIfTI volume: all axial ones


@dataclass(frozen=True)
class RecipePart:
    """One dataset, or one published half of it; ``shards/README.md`` says what each key means."""

    dataset: str | None = None  # None: named after the source folder
    root: str = "."
    format: str = "images"
    folders: dict[str, list[str]] = field(default_factory=dict)  # class → folders below root; empty: discover
    aliases: dict[str, list[str]] = field(default_factory=dict)
    ignore: list[str] = field(default_factory=list)
    published: str | None = None
    table: dict[str, str] | None = None
    patients: dict[str, Any] | None = None
    folds: str | None = None
    attributes_from_name: str | None = None
    window: dict[str, Any] = field(default_factory=lambda: dict(WINDOW))
    slices: dict[str, Any] = field(default_factory=lambda: dict(SLICES))
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
    parts: tuple[RecipePart, ...]


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
    """The recipe for a folder per class; for a folder of phantoms, with its table of patients and without its masks.

    A ``patients.csv`` with the columns id and patient is used; images without a row in it are of unknown patients.
    """
    columns = {"file": "patients.csv", "id": "id", "patient": "patient"}
    if os.path.isfile(source / "phantom.json"):  # noqa: PTH113 (False in a folder that may not be read)
        part = {"dataset": "phantom", "ignore": ["masks"], "patients": columns}
        about = {
            "title": "Made-up brain-MRI slices (phantoms)",
            "source": "brain_dist.shard phantom",
            "licence": "CC0-1.0",
        }
        return parse_recipe({"name": "phantom", **about, "parts": [part]}, "the phantom recipe")
    found = _header(source / "patients.csv")
    part = {"patients": {**columns, "partial": True}} if {"id", "patient"} <= set(found) else {}
    return parse_recipe({"parts": [part]}, "the default recipe")


def _header(table: Path) -> list[str]:
    """Column names of a CSV file, none where there is no such file."""
    if not os.path.isfile(table):  # noqa: PTH113
        return []
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            return next(csv.reader(stream), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the table of patients {table} cannot be read ({error}); mend or remove it") from None


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


def _part(entry: object, where: str, classes: tuple[str, ...]) -> RecipePart:
    part = _mapping(entry, where, set(RecipePart.__dataclass_fields__))
    if part.get("dataset") is not None:
        _safe(part["dataset"], f"{where}: dataset")
    kind = part.get("format", "images")
    _one_of(kind, FORMATS, f"{where}: format")
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
    if part.get("published") is not None:
        _one_of(part["published"], SPLITS, f"{where}: published")
    table, patients = _table(part.get("table"), f"{where}: table"), _patients(part.get("patients"), where)
    result = RecipePart(
        dataset=part.get("dataset"),
        root=_text(part.get("root", "."), f"{where}: root"),
        format=kind,
        folders=folders,
        aliases=aliases,
        ignore=_texts(part.get("ignore", []), f"{where}: ignore"),
        published=part.get("published"),
        table=table,
        patients=patients,
        folds=_text(part["folds"], f"{where}: folds") if "folds" in part else None,
        attributes_from_name=_pattern(part.get("attributes_from_name"), f"{where}: attributes_from_name"),
        window=_window(part.get("window", WINDOW), f"{where}: window"),
        slices=_slices(part.get("slices", {}), f"{where}: slices"),
        expected=by_class["expected"],
    )
    _check_together(part, result, where, classes)
    return result


def _check_together(given: dict[str, Any], part: RecipePart, where: str, classes: tuple[str, ...]) -> None:
    """Keys that need or exclude each other, and paths that leave the source folder."""
    only = {"slices": "nifti", "folds": "mat"}
    for key, kind in only.items():
        if key in given and part.format != kind:
            raise UserError(f"{where}: {key} goes with format: {kind} only")
    if "file" in part.window and part.format != "dicom":
        raise UserError(f"{where}: window: file goes with format: dicom only; other files state no window")
    if part.format == "mat":
        instead = [key for key in ("folders", "aliases", "ignore", "table") if given.get(key)]
        if instead:
            raise UserError(f"{where}: {instead[0]} does not go with format: mat, whose files hold their labels")
        lacking = {"glioma", "meningioma", "pituitary"} - set(classes)
        if lacking:
            raise UserError(f"{where}: format: mat needs the classes glioma, meningioma and pituitary")
    if part.table:
        instead = [key for key in ("folders", "ignore") if given.get(key)]
        instead += ["patients"] if part.patients and "patient" in part.table else []
        instead += ["published"] if part.published and "split" in part.table else []
        if instead:
            raise UserError(f"{where}: {instead[0]} does not go with this table, which says the same; keep one of them")
    tables = [table["file"] for table in (part.table, part.patients) if table]
    paths = [part.root, *(folder for found in part.folders.values() for folder in found), *tables]
    for path in paths + [part.folds] * bool(part.folds):
        if leaves(path):
            raise UserError(f"{where}: {path!r} must lie inside the source folder (no leading / and no ..)")


def leaves(path: str) -> bool:
    """Whether a path that should be relative to a folder leads out of it."""
    return path.startswith("/") or ".." in Path(path).parts


def _table(value: object, where: str) -> dict[str, str] | None:
    if value is None:
        return None
    columns = _mapping(value, where, {"file", "path", "label", "patient", "split"})
    optional = [key for key in ("patient", "split") if key in columns]
    return {key: _text(columns.get(key), f"{where}: {key}") for key in ("file", "path", "label", *optional)}


def _patients(value: object, where: str) -> dict[str, Any] | None:
    if value is None:
        return None
    columns = _mapping(value, f"{where}: patients", {"file", "id", "patient", "partial"})
    partial = columns.get("partial", False)
    if not isinstance(partial, bool):
        raise UserError(f"{where}: patients: partial must be true or false, got {partial!r}")
    texts = {key: _text(columns.get(key), f"{where}: patients: {key}") for key in ("file", "id", "patient")}
    return {**texts, "partial": partial}


def _pattern(value: object, where: str) -> str | None:
    if value is None:
        return None
    try:
        groups = re.compile(_text(value, where)).groupindex
    except re.error as error:
        raise UserError(f"{where}: {value!r} is no regular expression ({error})") from None
    if not groups:
        raise UserError(f"{where}: {value!r} names no attribute; write (?P<name>…) around each")
    return str(value).strip()


def _window(value: object, where: str) -> dict[str, Any]:
    if value == "file":
        return {"file": True}
    window = _mapping(value, where, {"percentiles", "center", "width"})
    if set(window) == {"percentiles"}:
        pair = window["percentiles"]
        if isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)) and 0 <= pair[0] < pair[1] <= 100:
            return {"percentiles": [float(number) for number in pair]}
    elif set(window) == {"center", "width"} and all(map(_is_number, window.values())) and window["width"] > 0:
        return {key: float(number) for key, number in window.items()}
    raise UserError(
        f"{where} must be {{percentiles: [low, high]}} of 0 to 100, {{center: …, width: …}}, or file, got {window!r}"
    )


def _slices(value: object, where: str) -> dict[str, Any]:
    slices = {**SLICES, **_mapping(value, where, set(SLICES))}
    if slices["axis"] not in (0, 1, 2) or isinstance(slices["axis"], bool):
        raise UserError(f"{where}: axis must be 0 (sagittal), 1 (coronal) or 2 (axial), got {slices['axis']!r}")
    if not isinstance(slices["step"], int) or isinstance(slices["step"], bool) or slices["step"] < 1:
        raise UserError(f"{where}: step must be a number of slices, 1 or more, got {slices['step']!r}")
    first, last = slices["from"], slices["to"]
    if not (_is_number(first) and _is_number(last) and 0 <= first < last <= 1):
        raise UserError(
            f"{where}: from and to must be shares of the axis, 0 <= from < to <= 1, got {first!r}, {last!r}"
        )
    return slices


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _one_of(value: object, known: tuple[str, ...], where: str) -> None:
    if value not in known:
        raise UserError(f"{where} must be one of {', '.join(known)}, got {value!r}")


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
