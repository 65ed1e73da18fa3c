"""Names: keys of samples, stems of files, and any path as readable text."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from pathlib import Path


def sample_keys(files: list[tuple[str, str, int | None]]) -> list[str]:
    """(dataset, path, number in the file) → safe keys: unique, dot-free, ASCII, at most 90 characters, stable.

    ``cheng``, ``cheng/glioma/1841.jpg`` gives ``cheng-glioma-1841``; slice 42 of ``glioma/a.nii`` ends in ``-a-0042``;
    where letters had to be replaced or two samples would share a key, the hash of path and number is appended.
    """
    texts, whole = [], []
    for dataset, path, frame in files:
        pieces = stem(path).split("/")
        numbered = [] if frame is None else [f"{frame:04d}"]
        texts.append("-".join([*(pieces if pieces[0] == dataset else [dataset, *pieces]), *numbered]))
        whole.append(os.fsencode(path) + (b"" if frame is None else b"\0%d" % frame))  # no path holds a zero byte
    keys = [slug(text)[:72] for text in texts]
    shared = Counter(keys)
    return [
        key if key == text and shared[key] == 1 else f"{key}-{hashlib.sha256(name).hexdigest()[:16]}"
        for key, text, name in zip(keys, texts, whole, strict=True)
    ]


def stem(path: str) -> str:
    """A path without its suffix, .nii.gz as a whole."""
    return path[: -len(".nii.gz")] if path.lower().endswith(".nii.gz") else os.path.splitext(path)[0]  # noqa: PTH122


def source_name(source: Path) -> str:
    """The source folder's own name, made safe for keys and file names."""
    return slug(source.resolve().name).strip("-_")[:40] or "dataset"


def slug(text: str) -> str:
    """Letters, digits, - and _ of ``text``; anything else becomes _."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", text) or "_"
