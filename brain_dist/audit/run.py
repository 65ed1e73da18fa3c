"""The audit command: reads folders, writes a folder with ``audit.json``, ``pairs.parquet`` and ``index.html``."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brain_dist.audit.counts import summary
from brain_dist.audit.survey import Source, Survey, pairs_table, survey_collections
from brain_dist.audit.wording import BETWEEN_COLUMNS, between_table, collection_table, plural
from brain_dist.collection.recipes import default_recipe, read_recipe
from brain_dist.common.files import check_place, is_inside, partial_folder, write_durably
from brain_dist.common.progress import Progress
from brain_dist.common.text import printable
from brain_dist.errors import UserError

COUNTS, PAIRS, PAGE = "audit.json", "pairs.parquet", "index.html"


def read_sources(folders: Sequence[Path], recipes: Sequence[str]) -> list[Source]:
    """The collections of the command line with their recipes; ``recipes`` holds ``NAME=YAML``.

    Raises:
        UserError: a folder does not exist or is given twice, two collections have the same name, or a recipe is given
            for an unknown collection or twice.
    """
    for number, folder in enumerate(folders):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give the folder of a collection")
        if any(folder.samefile(other) for other in folders[:number]):
            raise UserError(f"{folder} is given twice; give each collection once")
    names = _names(folders)
    recipe_files: dict[str, Path] = {}
    for argument in recipes:
        name = next((name for name in names if argument.startswith(f"{name}=")), None)
        if name is None:
            raise UserError(
                f"--recipe {argument} does not start with the name of a collection; use NAME=YAML with NAME one of "
                f"{', '.join(names)}"
            )
        if name in recipe_files:
            raise UserError(f"--recipe is given twice for {name}; give it once")
        recipe_files[name] = Path(argument.removeprefix(f"{name}="))
    return [
        Source(name, folder, read_recipe(recipe_files[name]) if name in recipe_files else default_recipe(folder))
        for name, folder in zip(names, folders, strict=True)
    ]


def _names(folders: Sequence[Path]) -> list[str]:
    """The names of the folders, with the parent's name in front if two are equal."""
    paths = [Path(os.path.abspath(folder)) for folder in folders]  # noqa: PTH100 (a link keeps its own name)
    short = [printable(path.name) for path in paths]
    names = [
        name if short.count(name) == 1 else f"{printable(path.parent.name)}/{name}"
        for name, path in zip(short, paths, strict=True)
    ]
    for name in names:
        if names.count(name) > 1:
            same = " and ".join(str(folder) for folder, other in zip(folders, names, strict=True) if other == name)
            raise UserError(f"{same} would have the same name {name}; rename one, or give a symbolic link to it")
    return names


def run_audit(
    collections: Sequence[Source], out: Path, *, workers: int, skip_bad: bool, progress: Progress
) -> tuple[Survey, dict[str, Any]]:
    """Survey the collections and write ``out``, which is complete or unchanged whenever this process ends.

    An audit in ``out`` is replaced.

    Returns:
        The survey and its counts.

    Raises:
        UserError: the input, ``out`` or the space for temporary files does not allow the audit. ``out`` and the folders
            are checked before anything is decoded.
    """
    from brain_dist.audit.page import render

    _check_out(collections, out)
    try:
        survey = survey_collections(collections, workers=workers, skip_bad=skip_bad, progress=progress)
    except OSError as error:
        folder, reason = tempfile.gettempdir(), error.strerror or error
        raise UserError(f"cannot write temporary files to {folder} ({reason}); set TMPDIR to another folder") from None
    counts = summary(survey)
    page = render(survey, collections, counts, progress)
    _write(out, survey, counts, page)
    return survey, counts


def _check_out(collections: Sequence[Source], out: Path) -> None:
    for source in collections:
        if is_inside(out, source.folder):
            raise UserError(f"--out {out} is inside the collection {source.folder}; choose a folder outside it")
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or _is_audit(out))):
        raise UserError(f"--out {out} exists and is not an audit folder; choose another --out")
    check_place(out)
    parent = next(folder for folder in Path(os.path.abspath(out)).parents if folder.exists())  # noqa: PTH100
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write --out {out}: no permission for {parent}; choose another --out")


def _is_audit(folder: Path) -> bool:
    """Whether the folder contains the files of an audit and nothing else."""
    if {path.name for path in folder.iterdir()} != {COUNTS, PAIRS, PAGE}:
        return False
    try:
        counts = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(counts, dict) and {"collections", "between", "thresholds"} <= set(counts)


def _write(out: Path, survey: Survey, counts: dict[str, Any], page: str) -> None:
    import pyarrow.parquet as pq

    # partial_folder removes folders with such names: if this process is killed between the two renames, the next audit
    # cleans up.
    previous = out.with_name(f".{out.name}.partial-{os.getpid()}-before")
    try:
        with partial_folder(out) as folder:
            write_durably(folder / COUNTS, (json.dumps(counts, indent=1, ensure_ascii=False) + "\n").encode())
            pq.write_table(pairs_table(survey), folder / PAIRS)
            write_durably(folder / PAGE, page.encode())
            if out.exists():
                out.rename(previous)
    except BaseException:
        if previous.exists() and not out.exists():
            previous.rename(out)
        raise
    finally:
        shutil.rmtree(previous, ignore_errors=True)


def print_audit(survey: Survey, counts: dict[str, Any]) -> None:
    """Print a table of the counts of each collection, and one of the copies between collections."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(title="within each collection", box=SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column("")
    for name in survey.names:
        table.add_column(escape(name), justify="right", overflow="fold")
    for text, values in collection_table(counts):
        table.add_row(text, *values)
    console.print(table)
    rows = between_table(counts)
    if rows:
        table = Table(title="between collections", box=SIMPLE, pad_edge=False, collapse_padding=True)
        for head in ("images of", "in"):
            table.add_column(head, overflow="fold")
        for _, head in BETWEEN_COLUMNS:
            table.add_column(head, justify="right", no_wrap=True)
        for name, other, values in rows:
            table.add_row(escape(name), escape(other), *values)
        console.print(table)
    if survey.skipped:
        console.print(f"skipped {plural(len(survey.skipped), 'damaged file')}, listed in {COUNTS} and on the page")
