"""The CSV tables that a recipe names: of patients, and of files with their labels."""

from __future__ import annotations

import csv
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from brain_dist.collection.recipes import RecipePart, leaves
from brain_dist.collection.spellings import SPLIT_OF, binary_hint, class_of, plain
from brain_dist.errors import UserError


@dataclass(frozen=True)
class Row:
    """A file as a table of files describes it; ``path`` is relative to the source, ``label`` is a class name."""

    path: str
    label: str
    patient: str | None
    split: str | None
    attributes: dict[str, str]


def read_patients(part: RecipePart, source: Path) -> dict[str, str | None]:
    """File name, stem or path below the part's root → patient, None where the cell is empty."""
    assert part.patients is not None
    identity, patient = part.patients["id"], part.patients["patient"]
    table: dict[str, str | None] = {}
    file = source / part.root / part.patients["file"]
    for line, row in _rows(file, (identity, patient), "table of patients"):
        name, value = row[identity], row[patient] or None
        if table.setdefault(name, value) != value:
            raise UserError(f"{file}, line {line}: {name} already belongs to another patient")
    return table


def read_files(part: RecipePart, classes: tuple[str, ...], source: Path) -> list[Row]:
    """The rows of the part's table of files, columns that the recipe does not name as attributes.

    Raises :class:`UserError`, with the line, on a file that is missing, listed twice or outside the part's root, and
    on a label or split by no known name.
    """
    columns = part.table
    assert columns is not None
    file = source / part.root / columns["file"]
    wanted = [columns[key] for key in ("path", "label", "patient", "split") if key in columns]
    known = class_of(classes, part.aliases)
    found: dict[str, Row] = {}
    for line, row in _rows(file, wanted, "table of files"):
        where, path = f"{file}, line {line}", posixpath.normpath(row[columns["path"]] or ".")
        label, split = row[columns["label"]], row[columns["split"]] if "split" in columns else ""
        if leaves(row[columns["path"]]):
            raise UserError(
                f"{where}: {row[columns['path']]!r} leads out of {source / part.root}; give paths inside it"
            )
        if path in found:
            raise UserError(f"{where}: {path!r} is listed a second time; keep one row a file")
        if plain(label) not in known:
            raise UserError(
                f"{where}: {label!r} is none of the classes {', '.join(classes)}; mend it, or list it under `aliases`"
                f"{binary_hint(label, known)}"
            )
        if split and plain(split) not in SPLIT_OF:
            raise UserError(f"{where}: {split!r} is no split; write train, val or test, or leave the cell empty")
        if not os.path.isfile(source / part.root / path):  # noqa: PTH113 (False for names that no file can have)
            raise UserError(f"{where}: the file {path!r} is missing in {source / part.root}")
        found[path] = Row(
            path=posixpath.normpath(posixpath.join(part.root, path)),
            label=known[plain(label)],
            patient=(row[columns["patient"]] or None) if "patient" in columns else None,
            split=SPLIT_OF[plain(split)] if split else part.published,
            attributes={name: value for name, value in row.items() if name and name not in wanted},
        )
    if not found:
        raise UserError(f"{file} lists no files")
    return list(found.values())


def _rows(file: Path, wanted: Sequence[str], what: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, column → cell without outer blanks) of a CSV that has the ``wanted`` columns and full rows."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            names = [name.strip() for name in next(reader, [])]
            lacking = [column for column in wanted if column not in names]
            if lacking:
                raise UserError(f"{file} has no column {', '.join(lacking)}; it has {', '.join(names) or 'none'}")
            named = [name for name in names if name]
            if len(set(named)) != len(named):
                raise UserError(f"{file}, line 1: two columns have one name; the names are {', '.join(names)}")
            for cells in reader:
                if not any(cells):
                    continue  # an empty line, as spreadsheets leave them at the end
                if len(cells) != len(names):
                    raise UserError(f"{file}, line {reader.line_num}: {len(cells)} cells for {len(names)} columns")
                yield reader.line_num, {name: cell.strip() for name, cell in zip(names, cells, strict=True)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the {what} {file} cannot be read ({error})") from None
