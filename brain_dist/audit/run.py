"""The verb ``audit``: folders in, a folder with ``audit.json``, ``pairs.parquet`` and ``index.html`` out."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from brain_dist.audit.survey import Source, Survey, pairs_table, summary, survey
from brain_dist.audit.wording import BETWEEN, INSIDE, directions, share
from brain_dist.collection.recipes import default_recipe, read_recipe
from brain_dist.common.files import partial_folder, write_durably
from brain_dist.common.text import printable
from brain_dist.errors import UserError

COUNTS, PAIRS, PAGE = "audit.json", "pairs.parquet", "index.html"
Progress = Callable[[str, int, int], None]  # stage, done, total


def sources(folders: Sequence[Path], recipes: Sequence[str]) -> list[Source]:
    """The collections of the command line, each with its recipe; ``recipes`` holds ``NAME=YAML``.

    :class:`UserError` on a folder that is none or is given twice, on two collections of one name, and on a recipe for
    a collection that is not there.
    """
    real = [folder.resolve() for folder in folders]
    for number, folder in enumerate(folders):
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; name the folder of a collection")
        if real[number] in real[:number]:
            raise UserError(f"{folder} is given twice; name each collection once")
    names = _names(folders)
    chosen: dict[str, Path] = {}
    for text in recipes:
        name = next((name for name in names if text.startswith(f"{name}=")), None)
        if name is None:
            raise UserError(
                f"--recipe {text} names none of the collections; write NAME=YAML, NAME one of {', '.join(names)}"
            )
        if name in chosen:
            raise UserError(f"--recipe is given twice for {name}; keep one of them")
        chosen[name] = Path(text.removeprefix(f"{name}="))
    return [
        Source(name, folder, read_recipe(chosen[name]) if name in chosen else default_recipe(folder))
        for name, folder in zip(names, folders, strict=True)
    ]


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names; where two are the same, with the parent's before them."""
    paths = [Path(os.path.abspath(folder)) for folder in folders]  # noqa: PTH100 (a link is named as it is called)
    short = [printable(path.name) for path in paths]
    times = Counter(short)
    names = [
        name if times[name] == 1 else f"{printable(path.parent.name)}/{name}"
        for name, path in zip(short, paths, strict=True)
    ]
    for name, count in Counter(names).items():
        if count > 1:
            both = " and ".join(str(folder) for folder, known in zip(folders, names, strict=True) if known == name)
            raise UserError(f"{both} would both be called {name}; rename one, or name it by way of a link")
    return names


def run_audit(
    collections: Sequence[Source], out: Path, *, workers: int, skip_bad: bool, progress: Progress
) -> tuple[Survey, dict[str, Any]]:
    """Survey the collections and write ``out``: it is complete, or as it was before, however this process ends.

    An ``out`` that holds an audit is replaced. Returns what was found and its counts. :class:`UserError` on every fault
    of the input, before anything is decoded where that can be told.
    """
    from brain_dist.audit.page import render

    _check_out(collections, out)
    try:
        found = survey(collections, workers=workers, skip_bad=skip_bad, progress=progress)
    except BrokenProcessPool:
        raise UserError("a worker process was killed (out of memory?); audit with fewer --workers") from None
    except OSError as error:
        where = tempfile.gettempdir()
        raise UserError(
            f"temporary files in {where} cannot be written ({error.strerror or error}); set TMPDIR"
        ) from None
    counts = summary(found)
    page = render(found, collections, counts, progress)
    try:
        _write(out, found, counts, page)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror or error})") from None
    return found, counts


def _check_out(collections: Sequence[Source], out: Path) -> None:
    for source in collections:
        if out.resolve().is_relative_to(source.folder.resolve()):
            raise UserError(f"--out {out} lies inside the collection {source.folder}; name a folder outside it")
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or _is_audit(out))):
        raise UserError(f"--out {out} exists and is no audit that could be replaced; name another one or remove it")
    above = next(folder for folder in Path(os.path.abspath(out)).parents if folder.exists())  # noqa: PTH100
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"--out {out} cannot be written: no permission for {above}; name another one")


def _is_audit(folder: Path) -> bool:
    """Whether a folder holds what this verb writes, and nothing that is not ours to remove."""
    if {path.name for path in folder.iterdir()} != {COUNTS, PAIRS, PAGE}:
        return False
    try:
        counts = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(counts, dict) and {"collections", "between", "thresholds"} <= set(counts)


def _write(out: Path, found: Survey, counts: dict[str, Any], page: str) -> None:
    import pyarrow.parquet as pq

    # The name of partial_folder's own kind: were we killed between the two renames, the next audit would clear it.
    before = out.with_name(f".{out.name}.partial-{os.getpid()}-before")
    try:
        with partial_folder(out) as folder:
            write_durably(folder / COUNTS, (json.dumps(counts, indent=1, ensure_ascii=False) + "\n").encode())
            pq.write_table(pairs_table(found), folder / PAIRS)
            write_durably(folder / PAGE, page.encode())
            if out.exists():
                out.rename(before)
    except BaseException:
        if before.exists() and not out.exists():
            before.rename(out)
        raise
    finally:
        shutil.rmtree(before, ignore_errors=True)


def print_audit(found: Survey, counts: dict[str, Any]) -> None:
    """Print the counts in words: a table of the collections, and one of what each holds of the others."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(title="inside each collection", box=SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column("")
    for name in found.names:
        table.add_column(escape(name), justify="right", overflow="fold")
    for words, key, of in INSIDE:
        alone = counts["collections"].values()
        table.add_row(words, *(share(one[key], one[of] if of else None) for one in alone))
    console.print(table)
    rows = directions(counts)
    if rows:
        table = Table(title="between collections", box=SIMPLE, pad_edge=False, collapse_padding=True)
        for words in ("images of", "in"):
            table.add_column(words, overflow="fold")
        for _, words, _ in BETWEEN:
            table.add_column(words, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(escape(row["of"]), escape(row["in"]), *(share(*row[key]) for *_, key in BETWEEN))
        console.print(table)
    if found.skipped:
        console.print(f"left out as damaged: {len(found.skipped):,} files, listed in {COUNTS} and on the page")
