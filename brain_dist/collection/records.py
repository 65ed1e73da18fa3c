"""A recipe and a source folder → one record per slice.

Images are not decoded here. Of MATLAB, DICOM and NIfTI files the headers are read, because they state what the files
contain.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from brain_dist.collection.contents import Contents
from brain_dist.collection.discovery import class_folders, files_below
from brain_dist.collection.matlab import read_folds
from brain_dist.collection.names import sample_keys, source_name, stem
from brain_dist.collection.pixels import BadImage
from brain_dist.collection.recipes import PatientTable, Recipe, RecipePart
from brain_dist.collection.slicefiles import read_contents
from brain_dist.collection.tables import read_files, read_patients
from brain_dist.common.text import printable
from brain_dist.errors import UserError


@dataclass(frozen=True)
class Record:
    """One slice before its pixels are read.

    Attributes:
        path: path of its file, relative to the source folder, with ``/`` between folders.
        key: unique name of the sample.
        dataset: name of its dataset.
        label: index of its class in the recipe; -1 if only the unreadable header states it.
        patient: patient, or None if unknown.
        published: published split, or None.
        part: index of its part in the recipe.
        frame: number of the slice in its file; None if the file has only one.
        attributes: what else tables, file names and headers say, in types of JSON.
        header_error: why the header cannot be read, or None. Such a file has one record.
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
    header_error: str | None


@dataclass(frozen=True)
class _File:
    """What folders, tables and its name say of a file before it is opened; ``label`` is a class name."""

    path: str
    part: int
    dataset: str
    label: str | None
    patient: str | None
    published: str | None
    attributes: dict[str, Any] = field(default_factory=dict)


def find_records(recipe: Recipe, source: Path) -> tuple[list[Record], list[str]]:
    """All slices that ``recipe`` describes in ``source``, ordered by path and number, and warnings.

    Raises:
        UserError: a folder is missing, empty or not a class; a table has a mistake (see
            :mod:`brain_dist.collection.tables`); an image has no row in the table of patients; or two parts contain the
            same file.
    """
    _check_readable(source)
    warnings: list[str] = []
    files: list[_File] = []
    for number in range(len(recipe.parts)):
        files += _part_files(number, recipe, source, warnings)
    files.sort(key=lambda file: os.fsencode(file.path))
    for previous, file in pairwise(files):
        if previous.path == file.path:
            raise UserError(f"{printable(file.path)} belongs to two parts or classes of the recipe; keep one of them")
    folds = [read_folds(part, source) for part in recipe.parts]
    slices = [record for file in files for record in _file_records(file, recipe, source, folds[file.part])]
    keys = sample_keys([(record.dataset, record.path, record.frame) for record in slices])
    records = [replace(record, key=key) for record, key in zip(slices, keys, strict=True)]
    return records, warnings + _count_warnings(recipe, records, source)


def _check_readable(source: Path) -> None:
    try:
        if not source.is_dir():
            raise UserError(f"--source {source} is not a folder")
        os.listdir(source)  # noqa: PTH208
    except OSError as error:
        raise UserError(f"--source {source} cannot be read ({error.strerror})") from None


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


def _part_files(number: int, recipe: Recipe, source: Path, warnings: list[str]) -> list[_File]:
    """The files of one part, with everything that is known of them before they are opened."""
    part = recipe.parts[number]
    dataset = part.dataset or source_name(source)
    if part.table is not None:
        files = [
            _File(row.path, number, dataset, row.label, row.patient, row.split, row.attributes)
            for row in read_files(part, recipe.classes, source)
        ]
    else:
        files = [
            _File(path, number, dataset, folder.label, None, folder.published)
            for folder in class_folders(part, recipe.classes, source)
            for path in files_below(source, folder.path, part, warnings)
        ]
    return _with_name_attributes(part, _with_patients(part, files, source), warnings)


def _with_patients(part: RecipePart, files: list[_File], source: Path) -> list[_File]:
    """The files with the patients of the part's table of patients, if it has one."""
    if part.patients is None:
        return files
    patients = read_patients(part.patients, source / part.root)
    return [replace(file, patient=_patient(file.path, part.root, part.patients, patients)) for file in files]


def _patient(path: str, root: str, table: PatientTable, patients: Mapping[str, str | None]) -> str | None:
    """The patient of a file by its path below ``root``, its name or its stem; None if its cell is empty."""
    name = os.path.basename(path)  # noqa: PTH119
    for spelling in (os.path.relpath(path, root), name, stem(name)):
        if spelling in patients:
            return patients[spelling]
    if table.partial:
        return None
    raise UserError(
        f"{printable(path)} has no row in {Path(root, table.file)} (column {table.id}); add one, with an empty patient "
        "if unknown"
    )


def _with_name_attributes(part: RecipePart, files: list[_File], warnings: list[str]) -> list[_File]:
    """The files with what ``attributes_from_name`` finds in their paths; the tables' values have precedence."""
    if part.attributes_from_name is None:
        return files
    pattern = re.compile(part.attributes_from_name)
    named, unmatched = [], []
    for file in files:
        match = pattern.search(os.path.relpath(file.path, part.root))
        if match is None:
            unmatched.append(file.path)
        groups = {key: printable(value) for key, value in match.groupdict().items() if value} if match else {}
        patient = groups.pop("patient", None)
        named.append(replace(file, patient=file.patient or patient, attributes={**groups, **file.attributes}))
    if unmatched:
        warnings.append(f"{len(unmatched)} files do not match attributes_from_name, such as {printable(unmatched[0])}")
    return named


def _file_records(file: _File, recipe: Recipe, source: Path, folds: dict[str, int]) -> Iterator[Record]:
    """The records of a file, one per slice, without keys."""
    part, header_error = recipe.parts[file.part], None
    try:
        contents = read_contents(source / file.path, part)
    except BadImage as error:
        contents, header_error = Contents([(None, {})]), str(error)
    fold = {"fold": _fold(file.path, part, folds)} if part.folds else {}
    label = file.label or contents.label
    patient = file.patient or contents.patient
    if patient is None and contents.volume:
        patient = printable(stem(file.path))  # a volume's slices must stay together
    for frame, attributes in contents.slices:
        yield Record(
            path=file.path,
            key="",
            dataset=file.dataset,
            label=recipe.classes.index(label) if label else -1,
            patient=patient,
            published=file.published,
            part=file.part,
            frame=frame,
            attributes={**attributes, **fold, **file.attributes},
            header_error=header_error,
        )


def _fold(path: str, part: RecipePart, folds: dict[str, int]) -> int:
    name = os.path.basename(stem(path))  # noqa: PTH119
    if name not in folds:
        raise UserError(f"{printable(path)} has no fold in {part.folds}, which has folds for 1.mat to {len(folds)}.mat")
    return folds[name]
