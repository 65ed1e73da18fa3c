"""The class folders of a part, the files in them, and what to say if the source has another layout."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from brain_dist.collection.dicom import is_dicom
from brain_dist.collection.masks import is_mask
from brain_dist.collection.recipes import Recipe, RecipePart
from brain_dist.collection.slicefiles import SUFFIXES
from brain_dist.collection.spellings import SPLIT_OF, binary_hint, class_of, composed, normalize
from brain_dist.common.text import printable
from brain_dist.errors import UserError

# Folders that archivers, file servers and operating systems add
_OF_OTHER_PROGRAMS = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
_MASKS = r"(?i)[-_](seg|segmentation|mask|labels?|roi)\.nii(\.gz)?$"  # volumes that annotate the one beside them
_MAX_SEARCHED = 200  # folders in which the layout is searched for


class WrongLayout(UserError):
    """The source has another layout than the recipe.

    Attributes:
        advice: what to do if no folder below the source has that layout either; None: see what the recipe expects.
    """

    def __init__(self, message: str, advice: str | None = None) -> None:
        super().__init__(message)
        self.advice = advice


def class_folders(
    part: RecipePart, classes: tuple[str, ...], source: Path, warnings: list[str], *, allow_missing: bool
) -> list[tuple[str, int, str | None]]:
    """(path, label, published split) of each class folder: those that the recipe lists, or those named like a class.

    A label is -1 if the files or their masks state it.

    Raises:
        WrongLayout: a listed folder is missing, a folder's name is not a class, or there are no class folders.
    """
    if part.format == "mat":
        return [(part.root, -1, part.published)]
    if part.masks and part.masks.lesion:
        if not (source / part.root).is_dir():
            raise WrongLayout(f"the folder {part.root} is missing in {source}")
        return [(part.root, -1, part.published)]
    spellings = class_of(classes, part.aliases)
    folders: list[tuple[str, int, str | None]] = []
    for label, names in part.folders.items():
        for path in (Path(part.root, name).as_posix() for name in names):
            if (source / path).is_dir():
                folders.append((path, classes.index(label), part.published))
                continue
            message = f"the folder {path} for class {label} is missing in {source}"
            if not allow_missing:
                raise WrongLayout(f"{message} (`shard build --allow-missing` builds without it)")
            warnings.append(message)

    def search(folder: str, published: str | None) -> None:
        """Add the class folders in a folder, and in its folders that are named like a split."""
        for name in _subfolders(source, folder):
            path = Path(folder, name).as_posix()
            if name in part.ignore:
                continue
            if (label := spellings.find(name)) is not None:
                folders.append((path, classes.index(label), published))
            elif published is None and normalize(name) in SPLIT_OF:
                search(path, SPLIT_OF[normalize(name)])
            else:
                advice = (
                    "rename it, or copy shards/datasets/folder_per_class.yaml and list it under `aliases` or `ignore`"
                )
                raise WrongLayout(
                    f"the folder {printable(path)} is not one of the classes {', '.join(classes)}",
                    binary_hint(name, spellings) or advice,
                )

    if not part.folders:
        search(part.root, part.published)
    if not folders:
        raise WrongLayout(f"{source / part.root} has no class folders")
    return folders


def layout_advice(error: WrongLayout, recipe: Recipe, source: Path) -> str:
    """What to do about a wrong layout: use a folder at most two levels below ``source`` that has the right one."""
    folders = [source]
    for folder in folders:  # grows meanwhile: its folders, then theirs
        if len(folder.relative_to(source).parts) < 2 and len(folders) < _MAX_SEARCHED:
            with contextlib.suppress(UserError):  # one that cannot be read
                folders += [folder / name for name in _subfolders(folder, ".")]
    for folder in folders[1:]:
        if all(_fits(part, recipe.classes, folder) for part in recipe.parts):
            return f"{printable(str(folder))} has the expected folders: use --source {printable(str(folder))}"
    return error.advice or f"expected in --source: {', '.join(_layout(part, recipe.classes) for part in recipe.parts)}"


def _fits(part: RecipePart, classes: tuple[str, ...], source: Path) -> bool:
    try:
        if part.table is not None:
            return (source / part.root / part.table.file).is_file()
        if part.format == "mat":
            return (source / part.root / part.folds).is_file() if part.folds else any(source.glob("*.mat"))
        if part.masks and part.masks.lesion:
            return any((source / part.root).glob(f"**/*{part.masks.suffix}.*"))
        return bool(class_folders(part, classes, source, [], allow_missing=False))
    except (UserError, OSError):  # OSError: no permission
        return False


def _layout(part: RecipePart, classes: tuple[str, ...]) -> str:
    """What the part expects in the source folder."""
    root = "" if part.root == "." else f"{part.root}/"
    if part.table is not None:
        return f"{root}{part.table.file}"
    if part.format == "mat":
        return f"{root}*.mat"
    if part.masks and part.masks.lesion:
        return f"{root}… with masks …{part.masks.suffix}.*"
    if part.folders:
        return ", ".join(f"{root}{name}/" for names in part.folders.values() for name in names)
    below = "" if part.published else f" (or {root}Training/… and {root}Testing/…)"
    return ", ".join(f"{root}{name}/" for name in classes) + below


def _subfolders(source: Path, folder: str) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones and those of other programs."""
    try:
        # is_dir is False for circular links
        names = [path.name for path in (source / folder).iterdir() if path.is_dir()]
    except FileNotFoundError:
        raise WrongLayout(f"the folder {folder} is missing in {source}") from None
    except OSError as error:
        raise UserError(f"{source / folder} cannot be read ({error.strerror})") from None
    return sorted(name for name in names if not _is_ignored(name))


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in _OF_OTHER_PROGRAMS


def files_below(source: Path, folder: str, part: RecipePart, warnings: list[str]) -> list[str]:
    """Paths, relative to ``source``, of the files of the part's format below a folder.

    Other files, and those that the recipe excludes, are a warning.

    Raises:
        UserError: a folder is missing or cannot be read, or there are no such files.
    """
    suffixes = SUFFIXES[part.format]
    folds = part.folds and Path(part.root, part.folds).as_posix()
    excluding = composed(part.exclude or (_MASKS if part.format == "nifti" else ""))
    paths: list[str] = []
    others: list[str] = []
    excluded: list[str] = []
    for path in _walk(source, folder):
        name = os.path.basename(path)  # noqa: PTH119
        if path == folds or is_mask(path, part):
            continue
        if name.startswith(".") or not (
            name.lower().endswith(suffixes) or (part.format == "dicom" and is_dicom(source / path))
        ):
            others.append(path)
        elif excluding and re.search(excluding, composed(os.path.relpath(path, part.root))):
            excluded.append(path)
        else:
            paths.append(path)
    kind = {"images": "images", "dicom": "DICOM files"}.get(part.format, f"{' or '.join(suffixes)} files")
    if not paths:
        instead = "".join(
            f" ({len(files)} {what}, such as {printable(files[0])})"
            for what, files in (("other files", others), ("excluded files", excluded))
            if files
        )
        raise UserError(
            f"the folder {printable(folder)} contains no {kind}{instead}; add some or remove it; a recipe's `format` "
            "sets which kind of files is read"
        )
    for files, why in ((others, f"are not {kind} by their names"), (excluded, "are left out by their names")):
        if files:
            warnings.append(f"{printable(folder)}: {len(files)} files {why}, such as {printable(files[0])}")
    return paths


def _walk(source: Path, folder: str) -> Iterator[str]:
    """Paths of all files below a folder, without ignored folders; links are followed, each folder once."""

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror})")

    visited: set[str] = set()
    for base, folders, files in os.walk(source / folder, onerror=fail, followlinks=True):
        real = os.path.realpath(base)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not _is_ignored(name))
        for name in sorted(files):
            yield os.path.relpath(os.path.join(base, name), source)  # noqa: PTH118
