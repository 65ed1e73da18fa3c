"""A recipe (YAML) describes how a collection is stored on disk; ``shards/README.md`` documents its keys."""

from __future__ import annotations

import copy
import os
import re
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from brain_dist.collection.csvfiles import has_columns
from brain_dist.collection.recipe_keys import BoxTable, FileTable, MaskFiles, PatientTable, SliceRange
from brain_dist.collection.records import RESERVED
from brain_dist.collection.spellings import class_of
from brain_dist.collection.window import DEFAULT_WINDOW, Window
from brain_dist.common.schema import Location, load_yaml, read_dataclass, unknown_key
from brain_dist.common.text import nearest
from brain_dist.errors import UserError

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
DATASETS = Path(__file__).resolve().parents[2] / "shards" / "datasets"  # recipes of published collections
MATLAB_CLASSES = ("meningioma", "glioma", "pituitary")  # of the labels 1, 2 and 3 in Cheng's MATLAB files
PATIENTS = "patients.csv"  # the table of patients that is used without a recipe


@dataclass(frozen=True)
class RecipePart:
    """One dataset, or one half of its published split.

    Attributes:
        dataset: name of the dataset; None: the name of the source folder.
        root: folder of this part, relative to the source folder; other paths are relative to it.
        format: what kind of files are read.
        folders: class → its folders; empty: folders are found by their names.
        aliases: class → additional spellings of its name.
        ignore: folders that are not classes.
        exclude: regular expression; files whose path it matches somewhere are left out. By default, masks beside NIfTI
            volumes are left out.
        published: the publisher's split that this part belongs to.
        table: describes every file, instead of class folders.
        patients: maps files to patients.
        boxes: lists the boxes of lesions.
        masks: where the masks of lesions are (``format: images``).
        channel: which channel of an image of several is used, from 0 (``format: images``); None: all, as gray.
        folds: MATLAB file of the published folds (``format: mat``).
        attributes_from_name: regular expression whose named groups, found in a file's path, become attributes.
        window: which values become black and white.
        slices: which slices of a volume are used (``format: nifti``); None: all axial ones.
        expected: class → published number of images.

    Raises:
        ValueError: keys contradict each other, a name is not safe in file names, or a path is not inside the source.
    """

    dataset: str | None = None
    root: str = "."
    format: Literal["images", "mat", "dicom", "nifti"] = "images"
    folders: dict[str, list[str]] = field(default_factory=dict)
    aliases: dict[str, list[str]] = field(default_factory=dict)
    ignore: list[str] = field(default_factory=list)
    exclude: str | None = None
    published: Literal["train", "val", "test"] | None = None
    table: FileTable | None = None
    patients: PatientTable | None = None
    boxes: BoxTable | None = None
    masks: MaskFiles | None = None
    channel: int | None = None
    folds: str | None = None
    attributes_from_name: str | None = None
    window: Window = DEFAULT_WINDOW
    slices: SliceRange | None = None
    expected: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_name("dataset", self.dataset)
        if self.exclude is not None:
            _compile("exclude", self.exclude)
        if self.attributes_from_name is not None and not _compile("attributes_from_name", self.attributes_from_name):
            raise ValueError(
                f"attributes_from_name: {self.attributes_from_name!r} names no attribute; write (?P<name>…) around each"
            )
        for name in _compile("attributes_from_name", self.attributes_from_name or ""):
            if name in RESERVED:
                raise ValueError(f"attributes_from_name: {name} is what masks say; choose another name")
        mistakes: list[tuple[str, object]] = [
            ("slices is only for format: nifti", self.slices and self.format != "nifti"),
            ("folds is only for format: mat", self.folds and self.format != "mat"),
            ("masks is only for format: images", self.masks and self.format != "images"),
            ("channel is only for format: images", self.channel is not None and self.format != "images"),
            (f"channel must be ≥ 0, got {self.channel}", (self.channel or 0) < 0),
            (
                "window: file is only for format: dicom; other files state no window",
                self.window.file and self.format != "dicom",
            ),
        ]
        for key in ("folders", "aliases", "ignore", "table"):
            message = f"{key} cannot be used with format: mat, whose files contain their labels"
            mistakes.append((message, self.format == "mat" and getattr(self, key)))
        for key in ("folders", "aliases", "ignore", "table"):
            message = f"{key} cannot be used with masks that give the classes (masks.lesion)"
            mistakes.append((message, self.masks and self.masks.lesion and getattr(self, key)))
        columns = dict.fromkeys(("folders", "ignore", "exclude"), "label")
        columns |= {"patients": "patient", "published": "split"}
        for key, column in columns.items():
            message = f"{key} cannot be used with this table, which says the same; keep one of them"
            mistakes.append((message, self.table and getattr(self.table, column) and getattr(self, key)))
        files = [entry.file for entry in (self.table, self.patients, self.boxes) if entry]
        files += [self.masks.folder] if self.masks and self.masks.folder else []
        for path in (self.root, *chain(*self.folders.values()), *files, self.folds or "."):
            message = f"{path!r} must be inside the source folder (no leading / and no ..)"
            mistakes.append((message, leads_outside(path)))
        for name, count in self.expected.items():
            mistakes.append((f"expected: {name} must be a number of images ≥ 0, got {count}", count < 0))
        for message, wrong in mistakes:
            if wrong:
                raise ValueError(message)

    def as_dict(self) -> dict[str, Any]:
        """The part with a recipe's keys and with its defaults, as the manifest stores it."""
        slices = {key.rstrip("_"): value for key, value in asdict(self.slices or SliceRange()).items()}
        table = self.table and {key: value for key, value in asdict(self.table).items() if value is not None}
        content = {**asdict(self), "table": table, "window": self.window.as_dict(), "slices": slices}
        rare = ("exclude", "boxes", "masks", "channel")  # left out if unused: datasets without them keep their version
        for mapping, key in (*((content, key) for key in rare), (slices, "volume")):
            if mapping[key] is None:
                del mapping[key]
        return content


@dataclass(frozen=True)
class Recipe:
    """How a collection is stored on disk.

    Attributes:
        parts: its datasets, or the halves of their published splits.
        classes: class names in label order.
        name: name of the built dataset; None: the name of the source folder.
        title: for people, like ``source``, ``licence`` and ``citation``.

    Raises:
        ValueError: a name is not safe in file names, or a part does not fit the classes.
    """

    name: str | None = None
    title: str = "not stated"
    source: str = "not stated"
    licence: str = "not stated"
    citation: str = "not stated"
    classes: tuple[str, ...] = CLASSES
    parts: tuple[RecipePart, ...] = ()

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must be one or more different names, got {list(self.classes)}")
        if not self.parts:
            raise ValueError("parts must be a list with at least one entry")
        for number, part in enumerate(self.parts):
            for key in ("folders", "aliases", "expected"):
                for name in getattr(part, key):
                    if name not in self.classes:
                        raise ValueError(f"parts[{number}]: {key}: {unknown_key(name, self.classes)}")
            for name in part.masks.classes if part.masks else ():
                if name not in self.classes:
                    raise ValueError(f"parts[{number}]: masks: {unknown_key(name, self.classes)}")
            try:
                class_of(self.classes, part.aliases)
            except ValueError as error:
                raise ValueError(f"parts[{number}]: aliases: {error}") from None
            if part.format == "mat" and not set(MATLAB_CLASSES) <= set(self.classes):
                raise ValueError(f"parts[{number}]: format: mat needs the classes {', '.join(MATLAB_CLASSES)}")

    def as_dict(self) -> dict[str, Any]:
        """The recipe with its keys in YAML and with its defaults, as the manifest stores it."""
        return {**asdict(self), "parts": [part.as_dict() for part in self.parts]}


def read_recipe(recipe: Path) -> Recipe:
    """Parse and check a recipe, given as a file or as the name of a file in ``shards/datasets``.

    Raises:
        UserError: the file is missing or unreadable, or has a mistake; with the file and the key.
    """
    path = recipe
    if not path.exists() and recipe.name == str(recipe):
        path = DATASETS / f"{recipe.name.removesuffix('.yaml')}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = sorted(file.stem for file in DATASETS.glob("*.yaml"))
        raise UserError(
            f"recipe {recipe} does not exist{nearest(recipe.name, names)}; give a file, or one of {', '.join(names)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} cannot be read ({error})") from None
    return parse_recipe(load_yaml(text, str(path)), str(path))


def parse_recipe(content: object, name: str) -> Recipe:
    """The YAML content of a recipe → :class:`Recipe`; ``name`` is the recipe's name in messages.

    ``window: file`` is short for ``window: {file: true}``.
    """
    content = copy.deepcopy(content)
    if isinstance(content, dict) and isinstance(content.get("parts"), list):
        for part in content["parts"]:
            if isinstance(part, dict) and part.get("window") == "file":
                part["window"] = {"file": True}
    return read_dataclass(Recipe, content, Location(name))


def default_recipe(source: Path) -> Recipe:
    """The recipe without ``--recipe``: a folder per class, or the phantom's recipe if ``source`` is a phantom.

    A ``patients.csv`` with the columns ``id`` and ``patient`` is used; an image without a row has no known patient.

    Raises:
        UserError: ``patients.csv`` cannot be read.
    """
    patients = PatientTable(PATIENTS, "id", "patient", partial=True)
    if os.path.isfile(source / "phantom.json"):  # noqa: PTH113 (False in a folder that cannot be read)
        return Recipe(
            name="phantom",
            title="Made-up brain-MRI slices (phantoms)",
            source="brain_dist.shard phantom",
            licence="CC0-1.0",
            parts=(
                RecipePart(
                    dataset="phantom",
                    ignore=["masks"],
                    patients=replace(patients, partial=False),
                    masks=MaskFiles(folder="masks"),
                ),
            ),
        )
    table = source / patients.file
    columns = (patients.id, patients.patient)
    is_usable = os.path.isfile(table) and has_columns(table, columns, "table of patients")  # noqa: PTH113
    return Recipe(parts=(RecipePart(patients=patients if is_usable else None),))


def leads_outside(path: str) -> bool:
    """Whether a path that must be relative to a folder leads out of it."""
    return path.startswith("/") or ".." in Path(path).parts


def _check_name(key: str, name: str | None) -> None:
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", name):
        raise ValueError(f"{key} is used in file names: it must be at most 40 letters, digits, _ and -, got {name!r}")


def _compile(key: str, pattern: str) -> dict[str, int]:
    """The named groups of a regular expression."""
    try:
        return dict(re.compile(pattern).groupindex)
    except re.error as error:
        raise ValueError(f"{key}: {pattern!r} is not a regular expression ({error})") from None
