"""The CSV tables that a recipe names: of files with their labels, and of patients."""

from __future__ import annotations

import math
import os
import posixpath
import unicodedata
from dataclasses import asdict
from pathlib import Path

from brain_dist.collection.csvfiles import read_rows
from brain_dist.collection.recipe_keys import BoxTable, PatientTable
from brain_dist.collection.recipes import RecipePart, leads_outside
from brain_dist.collection.records import RESERVED, Record
from brain_dist.collection.spellings import SPLIT_OF, binary_hint, class_of, composed, normalize
from brain_dist.errors import UserError


def read_patients(table: PatientTable, root: Path) -> dict[str, str | None]:
    """File name, stem or path relative to ``root``, as :func:`composed` → patient, None if its cell is empty.

    Raises:
        UserError: the table cannot be read, lacks a column, or gives a file two patients.
    """
    path = root / table.file
    patients: dict[str, str | None] = {}
    for line, cells in read_rows(path, (table.id, table.patient), "table of patients"):
        name, patient = composed(cells[table.id]), cells[table.patient] or None
        if patients.setdefault(name, patient) != patient:
            raise UserError(f"{path}, line {line}: {name} already belongs to another patient")
    return patients


def read_boxes(table: BoxTable, root: Path) -> dict[str, list[list[float]]]:
    """File name, stem or path relative to ``root``, as :func:`composed` → its boxes: left, top, right, bottom.

    They are fractions of the image. Empty if the table is optional and absent.

    Raises:
        UserError: the table cannot be read or lacks a column, or, with the line number, a row is not such a box.
    """
    path = root / table.file
    boxes: dict[str, list[list[float]]] = {}
    if table.optional and not path.exists():
        return boxes
    columns = (table.center_x, table.center_y, table.width, table.height)
    for line, cells in read_rows(path, (table.id, *columns), "table of boxes"):
        try:
            x, y, width, height = (float(cells[name]) for name in columns)
        except ValueError:
            x = y = width = height = math.nan
        if not (0 <= x <= 1 and 0 <= y <= 1 and 0 < width <= 1 and 0 < height <= 1):
            values = ", ".join(f"{name} {cells[name]!r}" for name in columns)
            raise UserError(
                f"{path}, line {line}: {values} is not the centre and the size of a box as fractions of the image"
            )
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        boxes.setdefault(composed(cells[table.id]), []).append([round(min(max(c, 0.0), 1.0), 6) for c in corners])
    return boxes


def read_files(part: RecipePart, classes: tuple[str, ...], source: Path) -> list[Record]:
    """The files that the part's table lists; columns that the recipe does not name are their attributes.

    Raises:
        UserError: the table cannot be read or lists no files; or, with the line number, a file is missing, listed twice
            or outside the part's root, or a label or split is unknown.
    """
    table = part.table
    assert table is not None
    root = source / part.root
    spellings = class_of(classes, part.aliases)
    columns = [column for key, column in asdict(table).items() if key != "file" and column is not None]
    rows: dict[str, Record] = {}
    for line, cells in read_rows(root / table.file, columns, "table of files"):
        location = f"{root / table.file}, line {line}"
        path = _image_path(cells[table.path], root, location)
        taken = [name for name in cells if name in RESERVED and name not in columns]
        if taken:
            raise UserError(f"{location}: a column {taken[0]} would be taken for what masks say; give it another name")
        if path in rows:
            raise UserError(f"{location}: {path!r} is listed a second time; keep one row per file")
        label, split = spellings.find(cells[table.label]), cells[table.split] if table.split else ""
        if label is None:
            hint = binary_hint(cells[table.label], spellings)
            raise UserError(
                f"{location}: {cells[table.label]!r} is not one of the classes {', '.join(classes)}; correct it, or "
                f"list it under `aliases`{'; ' * bool(hint)}{hint}"
            )
        if split and normalize(split) not in SPLIT_OF:
            raise UserError(f"{location}: {split!r} is not a split; write train, val or test, or leave the cell empty")
        rows[path] = Record(
            path=posixpath.normpath(posixpath.join(part.root, path)),
            label=classes.index(label),
            patient=(cells[table.patient] or None) if table.patient else None,
            published=SPLIT_OF.get(normalize(split), part.published),
            attributes={name: cell for name, cell in cells.items() if name and name not in columns},
        )
    if not rows:
        raise UserError(f"{root / table.file} lists no files")
    return list(rows.values())


def _image_path(cell: str, root: Path, location: str) -> str:
    """The normalized path of an existing file inside ``root``."""
    path = posixpath.normpath(cell or ".")
    if leads_outside(cell):
        raise UserError(f"{location}: {cell!r} leads out of {root}; give paths inside it")
    forms = (path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))  # macOS stores names as NFD
    existing = next((form for form in forms if os.path.isfile(root / form)), None)  # noqa: PTH113 (never raises)
    if existing is None:
        raise UserError(f"{location}: the file {path!r} is missing in {root}")
    return existing
