"""The class folders of a part, and the files in them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from brain_dist.collection.recipes import RecipePart
from brain_dist.collection.slicefiles import SUFFIXES
from brain_dist.collection.spellings import SPLIT_OF, binary_hint, class_of, normalize
from brain_dist.common.text import printable
from brain_dist.errors import UserError


@dataclass(frozen=True)
class Folder:
    """A folder of image files.

    Attributes:
        path: path of the folder, relative to the source folder.
        label: class of its files; None if the files state it.
        published: published split of its files, or None.
    """

    path: str
    label: str | None
    published: str | None


def class_folders(part: RecipePart, classes: tuple[str, ...], source: Path) -> list[Folder]:
    """The folders of a part: those that the recipe lists, or those whose names are spellings of a class.

    Raises:
        UserError: a listed folder is missing, a folder's name is not a class, or there are no class folders.
    """
    if part.format == "mat":
        return [Folder(part.root, None, part.published)]
    if part.folders:
        return list(_listed_folders(part, source))
    spellings = class_of(classes, part.aliases)
    folders = list(_find_folders(part.root, part.published, spellings, classes, part.ignore, source))
    if not folders:
        raise UserError(f"{source / part.root} has no class folders; expected some of {', '.join(classes)}")
    return folders


def _listed_folders(part: RecipePart, source: Path) -> Iterator[Folder]:
    for label, names in part.folders.items():
        for name in names:
            path = Path(part.root, name).as_posix()
            if not (source / path).is_dir():
                raise UserError(f"the folder {path} for class {label} is missing in {source}")
            yield Folder(path, label, part.published)


def _find_folders(
    folder: str,
    published: str | None,
    spellings: dict[str, str],
    classes: tuple[str, ...],
    ignore: Sequence[str],
    source: Path,
) -> Iterator[Folder]:
    """The class folders in a folder and, if ``published`` is None, in its folders that are named like a split."""
    for name in _subfolders(source, folder):
        path = Path(folder, name).as_posix()
        spelling = normalize(name)
        if name in ignore:
            continue
        if spelling in spellings:
            yield Folder(path, spellings[spelling], published)
        elif published is None and spelling in SPLIT_OF:
            yield from _find_folders(path, SPLIT_OF[spelling], spellings, classes, ignore, source)
        else:
            hint = binary_hint(name, spellings) or (
                "; rename it, or copy shards/datasets/folder_per_class.yaml and list it under `aliases` or `ignore`"
            )
            raise UserError(f"the folder {printable(path)} is not one of the classes {', '.join(classes)}{hint}")


def _subfolders(source: Path, folder: str) -> list[str]:
    """Names of the folders in a folder, without hidden ones, sorted."""
    if not (source / folder).is_dir():
        raise UserError(f"the folder {folder} is missing in {source}")
    try:
        names = sorted(os.listdir(source / folder))  # noqa: PTH208 (names need not be valid UTF-8)
    except OSError as error:
        raise UserError(f"{source / folder} cannot be read ({error.strerror})") from None
    # os.path.isdir is False for circular links
    return [name for name in names if not name.startswith(".") and os.path.isdir(source / folder / name)]  # noqa: PTH112


def files_below(source: Path, folder: str, part: RecipePart, warnings: list[str]) -> list[str]:
    """Paths, relative to ``source``, of the files of the part's format below a folder; other files are a warning.

    Raises:
        UserError: a folder is missing or cannot be read, or there are no such files.
    """
    if not (source / folder).is_dir():
        raise UserError(f"the folder {folder} is missing in {source}")
    suffixes = SUFFIXES[part.format]
    folds = part.folds and Path(part.root, part.folds).as_posix()
    paths: list[str] = []
    others: list[str] = []
    for path in _walk(source, folder):
        name = os.path.basename(path)  # noqa: PTH119 (names need not be valid UTF-8)
        if path == folds:
            continue
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
            yield os.path.relpath(os.path.join(base, name), source)  # noqa: PTH118 (names need not be valid UTF-8)
