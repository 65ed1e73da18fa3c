"""A recipe and a source folder → one record per slice.

Images are not decoded here. Of MATLAB, DICOM and NIfTI files the headers are read, because they state what the files
contain.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from brain_dist.collection.matlab import read_folds
from brain_dist.collection.pixels import BadImage, Contents
from brain_dist.collection.recipes import Recipe, RecipePart
from brain_dist.collection.records import Record, sample_keys, source_name, stem
from brain_dist.collection.slicefiles import SUFFIXES, read_contents
from brain_dist.collection.spellings import SPLIT_OF, binary_hint, class_of, normalize
from brain_dist.collection.tables import read_files, read_patients
from brain_dist.common.text import printable
from brain_dist.errors import UserError


def find_records(recipe: Recipe, source: Path) -> tuple[list[Record], list[str]]:
    """All slices that ``recipe`` describes in ``source``, ordered by path and number, and warnings.

    Raises:
        UserError: a folder is missing, empty or not a class; a table has a mistake (see
            :mod:`brain_dist.collection.tables`); an image has no row in the table of patients; or two parts contain the
            same file.
    """
    if not source.is_dir():
        raise UserError(f"--source {source} is not a folder")
    warnings: list[str] = []
    files: list[Record] = []
    for number, part in enumerate(recipe.parts):
        dataset = part.dataset or source_name(source)
        found = _part_files(part, recipe.classes, source, warnings)
        files += [replace(file, part=number, dataset=dataset) for file in found]
    files.sort(key=lambda file: os.fsencode(file.path))
    for previous, file in pairwise(files):
        if previous.path == file.path:
            raise UserError(f"{printable(file.path)} belongs to two parts or classes of the recipe; keep one of them")
    folds = [read_folds(part, source) for part in recipe.parts]
    slices = [record for file in files for record in _slices(file, recipe, source, folds[file.part])]
    keys = sample_keys([(record.dataset, record.path, record.frame) for record in slices])
    records = [replace(record, key=key) for record, key in zip(slices, keys, strict=True)]
    return records, warnings + _count_warnings(recipe, records, source)


def _count_warnings(recipe: Recipe, records: list[Record], source: Path) -> list[str]:
    """A warning for each class of a part that has more or fewer slices than the recipe expects."""
    counts = Counter((record.part, record.label) for record in records)
    warnings = []
    for number, part in enumerate(recipe.parts):
        for label, expected in part.expected.items():
            count = counts[number, recipe.classes.index(label)]
            if count != expected:
                name = " ".join(filter(None, (part.dataset or source_name(source), part.published)))
                warnings.append(f"{name}: {label} has {count} images, the recipe expects {expected}")
    return warnings


def _part_files(part: RecipePart, classes: tuple[str, ...], source: Path, warnings: list[str]) -> list[Record]:
    """The files of one part, with everything that folders, tables and names say of them."""
    if part.table is not None:
        files = read_files(part, classes, source)
    else:
        files = [
            Record(path, label, published=published)
            for folder, label, published in _class_folders(part, classes, source)
            for path in _files_below(source, folder, part, warnings)
        ]
    if part.patients is not None:
        patients = read_patients(part.patients, source / part.root)
        files = [replace(file, patient=_patient(file.path, part, patients)) for file in files]
    if part.attributes_from_name is None:
        return files
    pattern = re.compile(part.attributes_from_name)
    matches = [pattern.search(os.path.relpath(file.path, part.root)) for file in files]
    unmatched = [file.path for file, match in zip(files, matches, strict=True) if match is None]
    if unmatched:
        warnings.append(f"{len(unmatched)} files do not match attributes_from_name, such as {printable(unmatched[0])}")
    return [_with_groups(file, match) for file, match in zip(files, matches, strict=True)]


def _with_groups(file: Record, match: re.Match[str] | None) -> Record:
    """The file with the named groups of a match in its path; the tables' values have precedence."""
    groups = {key: printable(value) for key, value in match.groupdict().items() if value} if match else {}
    patient = groups.pop("patient", None)
    return replace(file, patient=file.patient or patient, attributes={**groups, **file.attributes})


def _patient(path: str, part: RecipePart, patients: dict[str, str | None]) -> str | None:
    """The patient of a file by its path below the part's root, its name or its stem; None if its cell is empty."""
    assert part.patients is not None
    name = os.path.basename(path)  # noqa: PTH119
    for spelling in (os.path.relpath(path, part.root), name, stem(name)):
        if spelling in patients:
            return patients[spelling]
    if part.patients.partial:
        return None
    raise UserError(
        f"{printable(path)} has no row in {Path(part.root, part.patients.file)} (column {part.patients.id}); add one, "
        "with an empty patient if unknown"
    )


def _slices(file: Record, recipe: Recipe, source: Path, folds: dict[str, int]) -> list[Record]:
    """The records of a file, one per slice, without keys."""
    part, name = recipe.parts[file.part], os.path.basename(stem(file.path))  # noqa: PTH119
    try:
        contents = read_contents(source / file.path, part)
    except BadImage as error:
        contents, file = Contents([(None, {})]), replace(file, header_error=str(error))
    if part.folds and name not in folds:
        raise UserError(
            f"{printable(file.path)} has no fold in {part.folds}, which has folds for 1.mat to {len(folds)}.mat"
        )
    stated = {"fold": folds[name], **file.attributes} if part.folds else file.attributes
    label = recipe.classes.index(contents.label) if contents.label else file.label
    patient = file.patient or contents.patient
    if patient is None and contents.volume:
        patient = printable(stem(file.path))  # a volume's slices must stay together
    return [
        replace(file, label=label, patient=patient, frame=frame, attributes={**attributes, **stated})
        for frame, attributes in contents.slices
    ]


def _class_folders(part: RecipePart, classes: tuple[str, ...], source: Path) -> list[tuple[str, int, str | None]]:
    """(path, label, published split) of each class folder: those that the recipe lists, or those named like a class.

    A label is -1 if the files state it.

    Raises:
        UserError: a listed folder is missing, a folder's name is not a class, or there are no class folders.
    """
    if part.format == "mat":
        return [(part.root, -1, part.published)]
    spellings = class_of(classes, part.aliases)
    folders: list[tuple[str, int, str | None]] = []
    for label, names in part.folders.items():
        for path in (Path(part.root, name).as_posix() for name in names):
            if not (source / path).is_dir():
                raise UserError(f"the folder {path} for class {label} is missing in {source}")
            folders.append((path, classes.index(label), part.published))

    def search(folder: str, published: str | None) -> None:
        """Add the class folders in a folder, and in its folders that are named like a split."""
        for name in _subfolders(source, folder):
            path = Path(folder, name).as_posix()
            spelling = normalize(name)
            if name in part.ignore:
                continue
            if spelling in spellings:
                folders.append((path, classes.index(spellings[spelling]), published))
            elif published is None and spelling in SPLIT_OF:
                search(path, SPLIT_OF[spelling])
            else:
                hint = binary_hint(name, spellings) or (
                    "; rename it, or copy shards/datasets/folder_per_class.yaml and list it under `aliases` or `ignore`"
                )
                raise UserError(f"the folder {printable(path)} is not one of the classes {', '.join(classes)}{hint}")

    if not part.folders:
        search(part.root, part.published)
    if not folders:
        raise UserError(f"{source / part.root} has no class folders; expected some of {', '.join(classes)}")
    return folders


def _subfolders(source: Path, folder: str) -> list[str]:
    """Names of the folders in a folder, without hidden ones, sorted."""
    try:
        # is_dir is False for circular links
        names = [path.name for path in (source / folder).iterdir() if not path.name.startswith(".") and path.is_dir()]
    except FileNotFoundError:
        raise UserError(f"the folder {folder} is missing in {source}") from None
    except OSError as error:
        raise UserError(f"{source / folder} cannot be read ({error.strerror})") from None
    return sorted(names)


def _files_below(source: Path, folder: str, part: RecipePart, warnings: list[str]) -> list[str]:
    """Paths, relative to ``source``, of the files of the part's format below a folder; other files are a warning.

    Raises:
        UserError: a folder is missing or cannot be read, or there are no such files.
    """
    suffixes = SUFFIXES[part.format]
    folds = part.folds and Path(part.root, part.folds).as_posix()
    paths: list[str] = []
    others: list[str] = []
    for path in _walk(source, folder):
        name = os.path.basename(path)  # noqa: PTH119
        if path != folds:
            (paths if name.lower().endswith(suffixes) and not name.startswith(".") else others).append(path)
    kind = "images" if part.format == "images" else f"{' or '.join(suffixes)} files"
    if not paths:
        instead = f" ({len(others)} other files, such as {printable(others[0])})" if others else ""
        raise UserError(
            f"the folder {printable(folder)} contains no {kind}{instead}; add some or remove it; a recipe's `format` "
            "sets which kind of files is read"
        )
    if others:
        warnings.append(
            f"{printable(folder)}: {len(others)} files are not {kind} by their names, such as {printable(others[0])}"
        )
    return paths


def _walk(source: Path, folder: str) -> Iterator[str]:
    """Paths of all files below a folder, without hidden folders; links are followed, each folder once."""

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror})")

    visited: set[str] = set()
    for base, folders, files in os.walk(source / folder, onerror=fail, followlinks=True):
        real = os.path.realpath(base)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            yield os.path.relpath(os.path.join(base, name), source)  # noqa: PTH118
