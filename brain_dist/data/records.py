"""A recipe and a source folder → one record for every image file. Nothing here opens an image."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from brain_dist.data.pixels import IMAGE_SUFFIXES
from brain_dist.data.recipes import Part, Recipe
from brain_dist.errors import UserError

ALIASES = {
    "glioma": ("glioma_tumor", "glioma_tumour", "gliomas", "glioblastoma", "gbm"),
    "meningioma": ("meningioma_tumor", "meningioma_tumour", "meningiomas"),
    "notumor": ("no_tumor", "no_tumour", "notumour", "no", "normal", "healthy", "none", "negative", "tumor_free"),
    "pituitary": ("pituitary_tumor", "pituitary_tumour", "pituitary_adenoma", "pituitaries"),
}
PUBLISHED = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


@dataclass(frozen=True)
class Record:
    """One image file before it is opened. ``path`` is relative to the source folder, with "/" between folders."""

    path: str
    key: str
    dataset: str
    label: int
    patient: str | None
    published: str | None


def find_records(recipe: Recipe, source: Path) -> tuple[list[Record], list[str]]:
    """All image files that ``recipe`` describes below ``source``, in the order of their paths, and warnings.

    Raises :class:`UserError` on a missing or empty folder, a folder that names no class, a missing table of patients,
    an image without a row in it, and a file that two parts claim.
    """
    if not source.is_dir():
        raise UserError(f"--source {source} is no folder")
    warnings: list[str] = []
    found: list[tuple[str, str, int, str | None, str | None]] = []
    for part in recipe.parts:
        dataset = part.dataset or source_name(source)
        patient_of = _patient_table(part, source)
        counts: Counter[str] = Counter()
        for name, published, folder in _class_folders(part, recipe.classes, source):
            paths = list(_images(source, folder, warnings))
            counts[name] += len(paths)
            label = recipe.classes.index(name)
            found += [(path, dataset, label, patient_of(path), published) for path in paths]
        for name, expected in part.expected.items():
            if counts[name] != expected:
                warnings.append(f"{dataset}: {name} has {counts[name]} images, the recipe expects {expected}")
    found.sort(key=lambda item: os.fsencode(item[0]))
    for before, after in pairwise(found):
        if before[0] == after[0]:
            raise UserError(f"{printable(after[0])} belongs to two parts or classes of the recipe; keep one of them")
    keys = sample_keys([(dataset, path) for path, dataset, *_ in found])
    records = [Record(item[0], key, *item[1:]) for item, key in zip(found, keys, strict=True)]
    return records, warnings


def _class_folders(part: Part, classes: tuple[str, ...], source: Path) -> Iterator[tuple[str, str | None, str]]:
    """(class, published split, folder relative to the source) of a part, from its list or from the folders' names."""
    if part.folders:
        for name, folders in part.folders.items():
            for folder in folders:
                path = Path(part.root, folder).as_posix()
                if not (source / path).is_dir():
                    raise UserError(f"the folder {path} for class {name} is missing in {source}")
                yield name, part.published, path
        return
    names = {
        _plain(alias): name for name in classes for alias in (name, *ALIASES.get(name, ()), *part.aliases.get(name, ()))
    }
    splits = {alias: split for split, aliases in PUBLISHED.items() for alias in aliases}

    def discover(folder: str, published: str | None) -> Iterator[tuple[str, str | None, str]]:
        if not (source / folder).is_dir():
            raise UserError(f"the folder {folder} is missing in {source}")
        with os.scandir(source / folder) as entries:
            inner = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        for name in (name for name in inner if name not in part.ignore):
            path = Path(folder, name).as_posix()
            if _plain(name) in names:
                yield names[_plain(name)], published, path
            elif published is None and _plain(name) in splits:
                yield from discover(path, splits[_plain(name)])
            else:
                raise UserError(
                    f"the folder {printable(path)} names none of the classes {', '.join(classes)}; rename it, or copy "
                    "shards/datasets/folder_per_class.yaml and list it under `aliases` or `ignore`"
                )

    folders_found = list(discover(part.root, part.published))
    if not folders_found:
        raise UserError(f"{source / part.root} has no class folders; expected some of {', '.join(classes)}")
    yield from folders_found


def _images(source: Path, folder: str, warnings: list[str]) -> Iterator[str]:
    """Paths of the image files below a class folder; linked folders are followed, each real folder once."""
    others: list[str] = []
    count, seen = 0, set()

    def unreadable(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror})")

    for base, inner, files in os.walk(source / folder, onerror=unreadable, followlinks=True):
        if (real := os.path.realpath(base)) in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for file in sorted(files):
            path = os.path.relpath(os.path.join(base, file), source)  # noqa: PTH118 (names need not be valid UTF-8)
            if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES and not file.startswith("."):  # noqa: PTH122
                count += 1
                yield path
            else:
                others.append(path)
    if not count:
        seen_instead = f" ({len(others)} other files, such as {printable(others[0])})" if others else ""
        raise UserError(f"the class folder {printable(folder)} holds no images{seen_instead}; add some or remove it")
    if others:
        warnings.append(
            f"{printable(folder)}: {len(others)} files are no images by their name, such as {printable(others[0])}"
        )


def _patient_table(part: Part, source: Path) -> Callable[[str], str | None]:
    """A function path → patient (None where the table leaves the cell empty), from the part's CSV."""
    if part.patients is None:
        return lambda path: None
    file, wanted = Path(part.root, part.patients["file"]), (part.patients["id"], part.patients["patient"])
    table: dict[str, str | None] = {}
    try:
        with (source / file).open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            lacking = [column for column in wanted if column not in (reader.fieldnames or [])]
            if lacking:
                raise UserError(f"{source / file} has no column {', '.join(lacking)}; it has {reader.fieldnames}")
            for row in reader:
                name, patient = row[wanted[0]], row[wanted[1]] or None
                if table.setdefault(name, patient) != patient:
                    raise UserError(
                        f"{source / file}, line {reader.line_num}: {name} already belongs to another patient"
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the table of patients {source / file} cannot be read ({error})") from None

    def patient_of(path: str) -> str | None:
        name = os.path.basename(path)  # noqa: PTH119
        for spelling in (os.path.splitext(name)[0], name, os.path.relpath(path, part.root)):  # noqa: PTH122
            if spelling in table:
                return table[spelling]
        raise UserError(f"{printable(path)} has no row in {file} (column {wanted[0]}); add one, empty where unknown")

    return patient_of


def sample_keys(files: list[tuple[str, str]]) -> list[str]:
    """(dataset, path) of every file → safe keys: unique, dot-free, ASCII, at most 90 characters, stable per file.

    ``cheng``, ``cheng/glioma/1841.jpg`` gives ``cheng-glioma-1841``; where letters had to be replaced or two files
    would share a key, the hash of the path is appended.
    """
    plain, exact = [], []
    for dataset, path in files:
        pieces = os.path.splitext(path)[0].split("/")  # noqa: PTH122
        text = "-".join(pieces if pieces[0] == dataset else [dataset, *pieces])
        plain.append(slug(text)[:72])
        exact.append(plain[-1] == text)
    shared = Counter(plain)
    return [
        key if faithful and shared[key] == 1 else f"{key}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
        for key, faithful, (_, path) in zip(plain, exact, files, strict=True)
    ]


def source_name(source: Path) -> str:
    """The source folder's own name, made safe for keys and file names."""
    return slug(source.resolve().name).strip("-_")[:40] or "dataset"


def slug(text: str) -> str:
    """Letters, digits, - and _ of ``text``; anything else becomes _."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", text) or "_"


def printable(path: str) -> str:
    """A path as valid, one-line UTF-8: undecodable bytes and control characters are spelt out (``\\xff``, ``\\n``)."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
