"""The CSV tables that a recipe names: of files with their labels, and of patients."""

from __future__ import annotations

import csv
import math
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from brain_dist.collection.recipe_keys import BoxTable, PatientTable
from brain_dist.collection.recipes import RecipePart, leads_outside
from brain_dist.collection.records import RESERVED, Record
from brain_dist.collection.spellings import SPLIT_OF, binary_hint, class_of, normalize
from brain_dist.errors import UserError


def read_patients(table: PatientTable, root: Path) -> dict[str, str | None]:
    """File name, stem or path relative to ``root`` → patient, None if its cell is empty.

    Raises:
        UserError: the table cannot be read, lacks a column, or gives a file two patients.
    """
    path = root / table.file
    patients: dict[str, str | None] = {}
    for line, cells in _read_rows(path, (table.id, table.patient), "table of patients"):
        name, patient = cells[table.id], cells[table.patient] or None
        if patients.setdefault(name, patient) != patient:
            raise UserError(f"{path}, line {line}: {name} already belongs to another patient")
    return patients


def read_boxes(table: BoxTable, root: Path) -> dict[str, list[list[float]]]:
    """File name, stem or path relative to ``root`` → its boxes, each left, top, right, bottom.

    They are fractions of the image. Empty if the table is optional and absent.

    Raises:
        UserError: the table cannot be read or lacks a column, or, with the line number, a row is not such a box.
    """
    path = root / table.file
    boxes: dict[str, list[list[float]]] = {}
    if table.optional and not path.exists():
        return boxes
    columns = (table.center_x, table.center_y, table.width, table.height)
    for line, cells in _read_rows(path, (table.id, *columns), "table of boxes"):
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
        boxes.setdefault(cells[table.id], []).append([round(min(max(c, 0.0), 1.0), 6) for c in corners])
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
    for line, cells in _read_rows(root / table.file, columns, "table of files"):
        location = f"{root / table.file}, line {line}"
        path = _image_path(cells[table.path], root, location)
        taken = [name for name in cells if name in RESERVED and name not in columns]
        if taken:
            raise UserError(f"{location}: a column {taken[0]} would be taken for what masks say; give it another name")
        if path in rows:
            raise UserError(f"{location}: {path!r} is listed a second time; keep one row per file")
        label, split = normalize(cells[table.label]), cells[table.split] if table.split else ""
        hint = binary_hint(label, spellings)
        if label not in spellings:
            raise UserError(
                f"{location}: {cells[table.label]!r} is not one of the classes {', '.join(classes)}; correct it, or "
                f"list it under `aliases`{'; ' * bool(hint)}{hint}"
            )
        if split and normalize(split) not in SPLIT_OF:
            raise UserError(f"{location}: {split!r} is not a split; write train, val or test, or leave the cell empty")
        rows[path] = Record(
            path=posixpath.normpath(posixpath.join(part.root, path)),
            label=classes.index(spellings[label]),
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
    if not os.path.isfile(root / path):  # noqa: PTH113 (False for names that no file can have)
        raise UserError(f"{location}: the file {path!r} is missing in {root}")
    return path


def _read_rows(path: Path, columns: Sequence[str], description: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column → stripped cell) of a CSV file that has ``columns`` and complete rows."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            header = [name.strip() for name in next(reader, [])]
            missing = [column for column in columns if column not in header]
            if missing:
                raise UserError(f"{path} has no column {', '.join(missing)}; it has {', '.join(header) or 'none'}")
            named = [name for name in header if name]
            if len(set(named)) != len(named):
                raise UserError(f"{path}, line 1: two columns have the same name; the names are {', '.join(header)}")
            for cells in reader:
                if not any(cells):
                    continue  # spreadsheets leave empty lines at the end
                if len(cells) != len(header):
                    raise UserError(f"{path}, line {reader.line_num}: {len(cells)} cells for {len(header)} columns")
                yield reader.line_num, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the {description} {path} cannot be read ({error})") from None
