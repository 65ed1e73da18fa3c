"""What is known of a slice before its pixels are read, and the unique key that it gets."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESERVED = ("boxes", "lesion_area", "same_channels")  # attributes that no table and no file name may set


@dataclass(frozen=True)
class Record:
    """One slice, or one file before its header is read.

    Attributes:
        path: path of its file, relative to the source folder, with ``/`` between folders.
        label: index of its class in the recipe; -1 if only the header states it.
        patient: patient, or None if unknown.
        published: published split, or None.
        attributes: what else tables, file names and headers say, in types of JSON.
        part: index of its part in the recipe.
        dataset: name of its dataset.
        frame: number of the slice in its file; None if the file has only one.
        key: unique name of the sample.
        header_error: why the header or the mask cannot be read, or None. Such a file has one record.
        mask: path of its mask, relative to the source folder, or None.
        mask_crc32: checksum of the mask's file.
    """

    path: str
    label: int
    patient: str | None = None
    published: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    part: int = 0
    dataset: str = ""
    frame: int | None = None
    key: str = ""
    header_error: str | None = None
    mask: str | None = None
    mask_crc32: int | None = None


def sample_keys(samples: list[tuple[str, str, int | None]]) -> list[str]:
    """(dataset, path, number in the file) → safe keys: unique, stable, ASCII without dots, at most 90 characters.

    ``cheng``, ``cheng/glioma/1841.jpg`` gives ``cheng-glioma-1841``; slice 42 of ``glioma/a.nii`` ends in ``-a-0042``.
    If characters had to be replaced or two samples would share a key, a hash of the path and the number is appended.
    """
    texts, identities = [], []
    for dataset, path, frame in samples:
        parts = stem(path).split("/")
        number = [] if frame is None else [f"{frame:04d}"]
        texts.append("-".join([*(parts if parts[0] == dataset else [dataset, *parts]), *number]))
        identities.append(os.fsencode(path) + (b"" if frame is None else b"\0%d" % frame))  # no path contains \0
    keys = [_slug(text)[:72] for text in texts]
    counts = Counter(keys)
    return [
        key if key == text and counts[key] == 1 else f"{key}-{hashlib.sha256(identity).hexdigest()[:16]}"
        for key, text, identity in zip(keys, texts, identities, strict=True)
    ]


def stem(path: str) -> str:
    """A path without its suffix; ``.nii.gz`` is one suffix."""
    return path[: -len(".nii.gz")] if path.lower().endswith(".nii.gz") else os.path.splitext(path)[0]  # noqa: PTH122


def source_name(source: Path) -> str:
    """The source folder's name, made safe for keys and file names."""
    return _slug(source.resolve().name).strip("-_")[:40] or "dataset"


def _slug(text: str) -> str:
    """``text`` with every character except ASCII letters, digits, - and _ replaced by _."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", text) or "_"
