"""CSV files as programs and spreadsheets save them: with commas, semicolons or tabs, in UTF-8 with a BOM or without."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from brain_dist.errors import UserError

_DELIMITERS = (",", ";", "\t")


def read_rows(path: Path, columns: Sequence[str], description: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column → stripped cell) of a CSV file that has ``columns`` and complete rows.

    Args:
        path: the file.
        columns: names that the header must have. They decide the delimiter.
        description: what the file is, for the error.

    Raises:
        UserError: the file cannot be read, lacks a column or has one twice, or, with its line, a row is incomplete.
    """
    with _opened(path, description) as stream:
        headers = _headers(stream)
        delimiter, header = next(
            (entry for entry in headers.items() if set(columns) <= set(entry[1])),
            max(headers.items(), key=lambda entry: len(entry[1])),
        )
        missing = [column for column in columns if column not in header]
        if missing:
            raise UserError(f"{path} has no column {', '.join(missing)}; it has {', '.join(header) or 'none'}")
        named = [name for name in header if name]
        if len(set(named)) != len(named):
            raise UserError(f"{path}, line 1: two columns have the same name; the names are {', '.join(header)}")
        stream.seek(0)
        reader = csv.reader(stream, delimiter=delimiter, strict=True)  # strict: a lost quote would swallow the rest
        next(reader, None)
        for cells in reader:
            if not any(cells):
                continue  # spreadsheets leave empty lines at the end
            if len(cells) != len(header):
                raise UserError(f"{path}, line {reader.line_num}: {len(cells)} cells for {len(header)} columns")
            yield reader.line_num, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}


def has_columns(path: Path, columns: Sequence[str], description: str) -> bool:
    """Whether the header of a CSV file has ``columns``; arguments and errors as of :func:`read_rows`."""
    with _opened(path, description) as stream:
        return any(set(columns) <= set(header) for header in _headers(stream).values())


def _headers(stream: TextIO) -> dict[str, list[str]]:
    """Delimiter → names of the columns if it is the file's."""
    headers = {}
    for delimiter in _DELIMITERS:
        stream.seek(0)
        headers[delimiter] = [name.strip() for name in next(csv.reader(stream, delimiter=delimiter), [])]
    return headers


@contextmanager
def _opened(path: Path, description: str) -> Iterator[TextIO]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise UserError(f"the {description} {path} cannot be read ({error}); save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise UserError(f"the {description} {path} cannot be read ({error}); repair it") from None
    except OSError as error:
        raise UserError(f"the {description} {path} cannot be read ({error.strerror or error})") from None
