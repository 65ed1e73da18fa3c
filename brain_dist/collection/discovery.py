"""A recipe and a source folder → one record per slice.

Images are not decoded here, but their masks are. Of MATLAB, DICOM and NIfTI files the headers are read, because they
state what the files contain.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Container
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from brain_dist.collection.decoding import BadImage
from brain_dist.collection.folders import WrongLayout, class_folders, files_below, layout_advice
from brain_dist.collection.masks import with_masks
from brain_dist.collection.matlab import read_folds
from brain_dist.collection.pixels import Contents
from brain_dist.collection.recipes import PATIENTS, Recipe, RecipePart
from brain_dist.collection.records import Record, sample_keys, source_name, stem
from brain_dist.collection.slicefiles import read_contents
from brain_dist.collection.spellings import composed
from brain_dist.collection.tables import read_boxes, read_files, read_patients
from brain_dist.common.text import printable
from brain_dist.errors import UserError


def find_records(recipe: Recipe, source: Path, *, allow_missing: bool = False) -> tuple[list[Record], list[str]]:
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
        try:
            found = _part_files(part, recipe.classes, source, warnings, allow_missing)
        except WrongLayout as error:
            raise UserError(f"{error}; {layout_advice(error, recipe, source)}") from None
        files += [replace(file, part=number, dataset=dataset) for file in found]
    files.sort(key=lambda file: os.fsencode(file.path))
    for previous, file in pairwise(files):
        if previous.path == file.path:
            raise UserError(f"{printable(file.path)} belongs to two parts or classes of the recipe; keep one of them")
    headers = [_read_header(file, recipe, source) for file in files]
    folds = [read_folds(part, source) for part in recipe.parts]
    slices = [
        record
        for file, header in zip(files, _distinguish_patients(files, headers, warnings), strict=True)
        for record in _slices(file, header, recipe, folds[file.part])
    ]
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


def _part_files(
    part: RecipePart, classes: tuple[str, ...], source: Path, warnings: list[str], allow_missing: bool
) -> list[Record]:
    """The files of one part, with everything that folders, tables and names say of them."""
    if part.table is not None:
        files = read_files(part, classes, source)
    else:
        files = [
            Record(path, label, published=published)
            for folder, label, published in class_folders(part, classes, source, warnings, allow_missing=allow_missing)
            for path in files_below(source, folder, part, warnings)
        ]
    if part.patients is not None:
        files = _with_patients(files, part, read_patients(part.patients, source / part.root), warnings)
    elif not (part.table and part.table.patient) and (source / part.root / PATIENTS).is_file():
        warnings.append(
            f"{Path(part.root, PATIENTS)} is not used: without a recipe it needs the columns id and patient, and a "
            "recipe has to name it under `patients`"
        )
    if part.boxes is not None:
        files = _with_boxes(files, part, read_boxes(part.boxes, source / part.root), warnings)
    if part.masks is not None:
        files = with_masks(files, part, classes, source, warnings)
    if part.attributes_from_name is None:
        return files
    pattern = re.compile(composed(part.attributes_from_name))
    matches = [pattern.search(composed(os.path.relpath(file.path, part.root))) for file in files]
    unmatched = [file.path for file, match in zip(files, matches, strict=True) if match is None]
    if unmatched:
        warnings.append(f"{len(unmatched)} files do not match attributes_from_name, such as {printable(unmatched[0])}")
    return [_with_groups(file, match) for file, match in zip(files, matches, strict=True)]


def _with_groups(file: Record, match: re.Match[str] | None) -> Record:
    """The file with the named groups of a match in its path; the tables' values have precedence."""
    groups = {key: printable(value) for key, value in match.groupdict().items() if value} if match else {}
    patient = groups.pop("patient", None)
    return replace(file, patient=file.patient or patient, attributes={**groups, **file.attributes})


def _with_patients(
    files: list[Record], part: RecipePart, patients: dict[str, str | None], warnings: list[str]
) -> list[Record]:
    """The files with the patients that a table has of them.

    Raises:
        UserError: a file has no row, and the recipe does not allow that.
    """
    assert part.patients is not None
    table = Path(part.root, part.patients.file)
    ids = _ids(files, part, patients, table, warnings)
    if None in ids and not part.patients.partial:
        raise UserError(
            f"{printable(files[ids.index(None)].path)} has no row in {table} (column {part.patients.id}); add one, "
            "with an empty patient if unknown"
        )
    if patients and not any(ids):
        warnings.append(
            f"{table} has patients, but of none of the images: its column {part.patients.id} must hold their names, "
            f"such as {printable(files[0].path)}"
        )
    return [replace(file, patient=None if key is None else patients[key]) for file, key in zip(files, ids, strict=True)]


def _ids(
    files: list[Record], part: RecipePart, known: Container[str], table: Path, warnings: list[str]
) -> list[str | None]:
    """The id by which a table knows each file: its path below the part's root, its name or its stem; None if none."""
    ids: list[str | None] = []
    first: dict[str, str] = {}  # id → the path of the first file that has it
    shared: list[tuple[str, str]] = []
    for file in files:
        name = os.path.basename(file.path)  # noqa: PTH119
        spellings = map(composed, (os.path.relpath(file.path, part.root), name, stem(name)))
        key = next((spelling for spelling in spellings if spelling in known), None)
        ids.append(key)
        if key is not None and (other := first.setdefault(key, file.path)) != file.path:
            shared.append((other, file.path))
    if shared:
        one, other = map(printable, shared[0])
        warnings.append(
            f"{table}: {len(shared)} images share the row of another image of the same name, such as {one} and {other};"
            " give their paths to tell them apart"
        )
    return ids


def _with_boxes(
    files: list[Record], part: RecipePart, boxes: dict[str, list[list[float]]], warnings: list[str]
) -> list[Record]:
    """The files with the boxes that a table has of them as an attribute.

    Raises:
        UserError: the table has boxes, but none of these files.
    """
    assert part.boxes is not None
    table = Path(part.root, part.boxes.file)
    ids = _ids(files, part, boxes, table, warnings)
    if boxes and not any(ids):
        raise UserError(
            f"{table} has boxes, but of none of the images: its column {part.boxes.id} must hold their names, such as "
            f"{printable(files[0].path)}"
        )
    return [
        file if key is None else replace(file, attributes={**file.attributes, "boxes": boxes[key]})
        for file, key in zip(files, ids, strict=True)
    ]


def _read_header(file: Record, recipe: Recipe, source: Path) -> Contents | str:
    """What the file's header says, or why it cannot be read."""
    if file.header_error is not None:
        return file.header_error
    try:
        return read_contents(source / file.path, recipe.parts[file.part])
    except BadImage as error:
        return str(error)


def _distinguish_patients(
    files: list[Record], headers: list[Contents | str], warnings: list[str]
) -> list[Contents | str]:
    """The headers, with studies as patients in a dataset whose headers all state the same patient.

    Anonymised DICOM files often have one PatientID for all.
    """
    result = list(headers)
    for dataset in dict.fromkeys(file.dataset for file in files):
        stated = {
            number: header
            for number, (file, header) in enumerate(zip(files, headers, strict=True))
            if file.dataset == dataset and isinstance(header, Contents) and header.study
        }
        patients = {header.patient for header in stated.values()}
        if len(patients) == 1 and len({header.study for header in stated.values()}) > 1:
            for number, header in stated.items():
                result[number] = replace(header, patient=header.study)
            warnings.append(
                f"{dataset}: all DICOM files have the PatientID {patients.pop()}; each StudyInstanceUID is taken for a "
                "patient"
            )
    return result


def _slices(file: Record, header: Contents | str, recipe: Recipe, folds: dict[str, int]) -> list[Record]:
    """The records of a file, one per slice, without keys."""
    part, name = recipe.parts[file.part], os.path.basename(stem(file.path))  # noqa: PTH119
    if isinstance(header, str):
        file, header = replace(file, header_error=header), Contents([(None, {})])
    if part.folds and name not in folds:
        raise UserError(
            f"{printable(file.path)} has no fold in {part.folds}, which has folds for 1.mat to {len(folds)}.mat"
        )
    stated = {"fold": folds[name], **file.attributes} if part.folds else file.attributes
    label = recipe.classes.index(header.label) if header.label else file.label
    patient = file.patient or header.patient
    if patient is None and header.volume:
        patient = printable(stem(file.path))  # a volume's slices must stay together
    return [
        replace(file, label=label, patient=patient, frame=frame, attributes={**attributes, **stated})
        for frame, attributes in header.slices
    ]
