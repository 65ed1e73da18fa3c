"""Sample keys, stems of file names, and names that are safe in file names."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from pathlib import Path


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
    keys = [slug(text)[:72] for text in texts]
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
    return slug(source.resolve().name).strip("-_")[:40] or "dataset"


def slug(text: str) -> str:
    """``text`` with every character except ASCII letters, digits, - and _ replaced by _."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", text) or "_"
