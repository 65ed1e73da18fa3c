"""A recipe and a source folder → one record for every slice. No image is decoded here; of .mat, DICOM and NIfTI files,
which say themselves what they hold, the headers are read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from brain_dist.collection.names import sample_keys, source_name, stem
from brain_dist.collection.pixels import BadImage
from brain_dist.collection.recipes import Recipe, RecipePart
from brain_dist.collection.slicefiles import SUFFIXES, Contents, read_contents, read_folds
from brain_dist.collection.spellings import SPLIT_OF, binary_hint, class_of, plain
from brain_dist.collection.tables import read_files, read_patients
from brain_dist.common.text import printable
from brain_dist.errors import UserError


@dataclass(frozen=True)
class Record:
    """One slice before its pixels are read. ``path`` is relative to the source folder, with "/" between folders.

    ``part`` is a position in the recipe's parts, ``frame`` the slice's number in a file that can hold several,
    ``attributes`` what else tables, names and headers tell (JSON's types). A file whose header cannot be read has one
    record with the reason in ``fault``, and label -1 where it kept its label to itself.
    """

    path: str
    key: str
    dataset: str
    label: int
    patient: str | None
    published: str | None
    part: int
    frame: int | None
    attributes: dict[str, Any]
    fault: str | None


@dataclass(frozen=True)
class _File:
    """What folders, tables and its name tell of a file before it is opened; ``label`` is a class name."""

    path: str
    part: int
    dataset: str
    label: str | None
    patient: str | None
    published: str | None
    attributes: dict[str, Any] = field(default_factory=dict)


def find_records(recipe: Recipe, source: Path) -> tuple[list[Record], list[str]]:
    """All slices that ``recipe`` describes below ``source``, in the order of their paths and numbers, and warnings.

    Raises :class:`UserError` on a missing or empty folder, a folder that names no class, faults of a table (see
    :mod:`brain_dist.collection.tables`), an image without a row in the table of patients, and a file that two parts
    claim.
    """
    try:
        if not source.is_dir():
            raise UserError(f"--source {source} is no folder")
        os.listdir(source)  # noqa: PTH208 (only whether it can be read)
    except OSError as error:
        raise UserError(f"--source {source} cannot be read ({error.strerror})") from None
    warnings: list[str] = []
    files: list[_File] = []
    for number, part in enumerate(recipe.parts):
        found = list(_part_files(number, part, recipe, source, warnings))
        files += _with_names(part, found, warnings)
    files.sort(key=lambda file: os.fsencode(file.path))
    for before, after in pairwise(files):
        if before.path == after.path:
            raise UserError(f"{printable(after.path)} belongs to two parts or classes of the recipe; keep one of them")
    folds = [read_folds(part, source) for part in recipe.parts]
    slices = [item for file in files for item in _slices(file, recipe, source, folds[file.part])]
    keys = sample_keys([(record.dataset, record.path, record.frame) for record in slices])
    records = [replace(record, key=key) for record, key in zip(slices, keys, strict=True)]
    return records, warnings + _unexpected(recipe, records, source)


def _unexpected(recipe: Recipe, records: list[Record], source: Path) -> list[str]:
    """A warning for each class of a part that has more or fewer slices than the recipe expects."""
    counts = Counter((record.part, record.label) for record in records)
    return [
        f"{' '.join(filter(None, (part.dataset or source_name(source), part.published)))}: {name} has "
        f"{counts[number, recipe.classes.index(name)]} images, the recipe expects {expected}"
        for number, part in enumerate(recipe.parts)
        for name, expected in part.expected.items()
        if counts[number, recipe.classes.index(name)] != expected
    ]


def _part_files(number: int, part: RecipePart, recipe: Recipe, source: Path, warnings: list[str]) -> Iterator[_File]:
    """The files of one part: from its table, or below its class folders, or (.mat, which know their class) below it."""
    dataset = part.dataset or source_name(source)
    patient_of = _patient_of(part, source)
    if part.table:
        for row in read_files(part, recipe.classes, source):
            patient = patient_of(row.path) if part.patients else row.patient
            yield _File(row.path, number, dataset, row.label, patient, row.split, row.attributes)
        return
    if part.format == "mat":
        folders: list[tuple[str | None, str | None, str]] = [(None, part.published, part.root)]
    else:
        folders = list(_class_folders(part, recipe.classes, source))
    tables = {Path(part.root, part.folds).as_posix()} if part.folds else set()
    for name, published, folder in folders:
        for path in _files_below(source, folder, part.format, tables, warnings):
            yield _File(path, number, dataset, name, patient_of(path), published)


def _with_names(part: RecipePart, files: list[_File], warnings: list[str]) -> list[_File]:
    """The files with what ``attributes_from_name`` reads off their paths; what a table says goes before it."""
    if part.attributes_from_name is None:
        return files
    pattern = re.compile(part.attributes_from_name)
    result, others = [], []
    for file in files:
        match = pattern.search(os.path.relpath(file.path, part.root))
        if match is None:
            others.append(file.path)
        groups = {key: printable(value) for key, value in match.groupdict().items() if value} if match else {}
        patient = groups.pop("patient", None)
        result.append(replace(file, patient=file.patient or patient, attributes={**groups, **file.attributes}))
    if others:
        warnings.append(f"{len(others)} files do not match attributes_from_name, such as {printable(others[0])}")
    return result


def _slices(file: _File, recipe: Recipe, source: Path, folds: dict[str, int]) -> Iterator[Record]:
    """The records of a file, without keys: one a slice."""
    part, fault = recipe.parts[file.part], None
    try:
        contents = read_contents(source / file.path, part)
    except BadImage as error:
        contents, fault = Contents([(None, {})]), str(error)
    own = {}
    if part.folds:
        name = os.path.basename(stem(file.path))  # noqa: PTH119
        if name not in folds:
            raise UserError(
                f"{printable(file.path)} has no fold in {part.folds}, which knows files 1.mat to {len(folds)}.mat"
            )
        own["fold"] = folds[name]
    label = file.label or contents.label
    patient = file.patient or contents.patient
    if patient is None and contents.volume:
        patient = printable(stem(file.path))  # a volume's slices must stay together
    for frame, facts in contents.slices:
        yield Record(
            path=file.path,
            key="",
            dataset=file.dataset,
            label=recipe.classes.index(label) if label else -1,
            patient=patient,
            published=file.published,
            part=file.part,
            frame=frame,
            attributes={**facts, **own, **file.attributes},
            fault=fault,
        )


def _class_folders(part: RecipePart, classes: tuple[str, ...], source: Path) -> Iterator[tuple[str, str | None, str]]:
    """(class, published split, folder relative to the source) of a part, from its list or from the folders' names."""
    if part.folders:
        for name, folders in part.folders.items():
            for folder in folders:
                path = Path(part.root, folder).as_posix()
                if not (source / path).is_dir():
                    raise UserError(f"the folder {path} for class {name} is missing in {source}")
                yield name, part.published, path
        return
    names = class_of(classes, part.aliases)

    def discover(folder: str, published: str | None) -> Iterator[tuple[str, str | None, str]]:
        if not (source / folder).is_dir():
            raise UserError(f"the folder {folder} is missing in {source}")
        inner = sorted(name for name in _listed(source / folder) if not name.startswith("."))
        inner = [name for name in inner if os.path.isdir(source / folder / name)]  # noqa: PTH112 (False for link loops)
        for name in (name for name in inner if name not in part.ignore):
            path = Path(folder, name).as_posix()
            if plain(name) in names:
                yield names[plain(name)], published, path
            elif published is None and plain(name) in SPLIT_OF:
                yield from discover(path, SPLIT_OF[plain(name)])
            else:
                hint = binary_hint(name, names) or (
                    "; rename it, or copy shards/datasets/folder_per_class.yaml and list it under `aliases` or `ignore`"
                )
                raise UserError(f"the folder {printable(path)} names none of the classes {', '.join(classes)}{hint}")

    folders_found = list(discover(part.root, part.published))
    if not folders_found:
        raise UserError(f"{source / part.root} has no class folders; expected some of {', '.join(classes)}")
    yield from folders_found


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 (names need not be valid UTF-8)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror})") from None


def _files_below(source: Path, folder: str, kind: str, besides: set[str], warnings: list[str]) -> Iterator[str]:
    """Paths of the files of a format below a folder, ``besides`` left out; linked folders are followed, each once."""
    others: list[str] = []
    count, seen = 0, set()

    def unreadable(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror})")

    if not (source / folder).is_dir():
        raise UserError(f"the folder {folder} is missing in {source}")
    for base, inner, files in os.walk(source / folder, onerror=unreadable, followlinks=True):
        if (real := os.path.realpath(base)) in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for file in sorted(files):
            path = os.path.relpath(os.path.join(base, file), source)  # noqa: PTH118 (names need not be valid UTF-8)
            if path in besides:
                continue
            if file.lower().endswith(SUFFIXES[kind]) and not file.startswith("."):
                count += 1
                yield path
            else:
                others.append(path)
    what = "images" if kind == "images" else f"{' or '.join(SUFFIXES[kind])} files"
    if not count:
        seen_instead = f" ({len(others)} other files, such as {printable(others[0])})" if others else ""
        raise UserError(
            f"the folder {printable(folder)} holds no {what}{seen_instead}; add some or remove it; a recipe's `format` "
            "says which kind of files is read"
        )
    if others:
        warnings.append(
            f"{printable(folder)}: {len(others)} files are no {what} by their name, such as {printable(others[0])}"
        )


def _patient_of(part: RecipePart, source: Path) -> Callable[[str], str | None]:
    """A function path → patient by the part's table, None where its cell is empty or there is no table."""
    if part.patients is None:
        return lambda path: None
    table, columns = read_patients(part, source), part.patients

    def patient_of(path: str) -> str | None:
        name = os.path.basename(path)  # noqa: PTH119
        for spelling in (os.path.relpath(path, part.root), name, stem(name)):
            if spelling in table:
                return table[spelling]
        if columns["partial"]:
            return None
        raise UserError(
            f"{printable(path)} has no row in {Path(part.root, columns['file'])} (column {columns['id']}); add one, "
            "empty where unknown"
        )

    return patient_of
