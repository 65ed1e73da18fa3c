"""Planted copies: images that a phantom collection contains twice, to measure which copies an audit finds.

| kind | a copy is |
|---|---|
| duplicate | the same bytes |
| reencoded | a JPEG of quality 30 to 80 |
| rescaled | resized to 0.5 to 1.6 times the side |
| cropped | without 2 to 9 % of the image on each side (another fraction for each), not resized |
| brightness | 0.6 to 1.5 times as bright, and up to 20 gray values brighter or darker |
| mirrored | flipped left to right, a JPEG of quality 30 to 80 |
| conflict | in the folder of another class: the same bytes, or re-encoded |
| leak | of a training image, among the test images: re-encoded, cropped or mirrored (with a published split only) |

No image is copied twice. Each copy gets a new patient and, except for leaks, is in the same part of the published
split as its original. A copy has no row in ``truth.csv`` and no mask; its original has.
"""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from brain_dist.collection.recipes import CLASSES
from brain_dist.copies.search import connected

KINDS = ("duplicate", "reencoded", "rescaled", "cropped", "brightness", "mirrored", "conflict", "leak")
TRAIN, TEST = "Training", "Testing"  # folders of the published split
QUALITY = 95  # of JPEGs
Row = dict[str, str | float]


def image_path(root: Path, row: Row) -> Path:
    """The file of an image, given its ``id``, ``class`` and ``part`` (the published split's folder, or empty)."""
    return root / str(row["part"]) / str(row["class"]) / f"{row['id']}.jpg"


def plant(root: Path, rows: Sequence[Row], ids: Sequence[str], patients: int, seed: int) -> list[Row]:
    """Write copies of all kinds in equal numbers.

    Args:
        root: the collection.
        rows: its images (id, class, part).
        ids: ids of the copies, at most as many as there are images.
        patients: number of patients; the copies' patients get the following numbers.
        seed: seed of the collection.

    Returns:
        the copies' rows: id, of, kind, class, part, patient.
    """
    rng = np.random.default_rng([seed, 7])
    shuffled = [rows[index] for index in rng.permutation(len(rows))]
    available = KINDS if any(row["part"] for row in rows) else KINDS[:-1]
    kinds = [available[index % len(available)] for index in range(len(ids))]
    leaks = [row for row in shuffled if row["part"] == TRAIN][: kinds.count("leak")]
    leaked = {row["id"] for row in leaks}
    leaked_originals = iter(leaks)
    originals = (row for row in shuffled if row["id"] not in leaked)
    copies: list[Row] = []
    for number, (name, kind) in enumerate(zip(ids, kinds, strict=True), patients + 1):
        original = next(leaked_originals if kind == "leak" else originals)
        copy = {**original, "id": name, "of": original["id"], "kind": kind, "patient": f"P{number:04d}"}
        change = _place_copy(copy, rng)
        _write_copy(image_path(root, original), image_path(root, copy), change, rng)
        copies.append(copy)
    return copies


def _place_copy(copy: Row, rng: np.random.Generator) -> str:
    """Move a conflict to another class and a leak to the test part; returns the change of its pixels."""
    if copy["kind"] == "conflict":
        copy["class"] = str(rng.choice([label for label in CLASSES if label != copy["class"]]))
        return str(rng.choice(["duplicate", "reencoded"]))
    if copy["kind"] == "leak":
        copy["part"] = TEST
        return str(rng.choice(["reencoded", "cropped", "mirrored"]))
    return str(copy["kind"])


def _write_copy(source: Path, target: Path, change: str, rng: np.random.Generator) -> None:
    if change == "duplicate":
        shutil.copyfile(source, target)
        return
    quality = int(rng.integers(30, 81)) if change in ("reencoded", "mirrored") else QUALITY
    with Image.open(source) as image:
        _changed(image, change, rng).save(target, quality=quality)


def _changed(image: Image.Image, change: str, rng: np.random.Generator) -> Image.Image:
    side = image.width
    if change == "rescaled":
        sides = [pixels for pixels in range(round(0.5 * side), round(1.6 * side) + 1) if pixels != side]
        return image.resize((int(rng.choice(sides)),) * 2, Image.Resampling.BICUBIC)
    if change == "cropped":
        left, top, right, bottom = np.rint(rng.uniform(0.02, 0.09, 4) * side).astype(int).tolist()
        return image.crop((left, top, side - right, side - bottom))
    if change == "brightness":
        gain, shift = rng.uniform(0.6, 1.5), rng.uniform(-20, 20)
        return image.point([round(min(max(gain * value + shift, 0), 255)) for value in range(256)])
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if change == "mirrored" else image


@dataclass(frozen=True)
class Score:
    """How many of the planted copies were found.

    Attributes:
        planted: kind → number of copies.
        found: kind → number of copies that are joined to their original, directly or through images of its patient.
        right: number of pairs of an image and its copy.
        neighbours: number of pairs of different slices of one patient, or of their copies.
        false: number of pairs of different patients.
    """

    planted: dict[str, int]
    found: dict[str, int]
    right: int
    neighbours: int
    false: int

    @property
    def recall(self) -> float:
        """Fraction of the planted copies that were found."""
        return sum(self.found.values()) / sum(self.planted.values())

    @property
    def precision(self) -> float:
        """Fraction of right pairs among all pairs except the neighbours."""
        return self.right / max(1, self.right + self.false)


def score(root: Path, ids: Sequence[str], first: np.ndarray, second: np.ndarray) -> Score:
    """Compare pairs of copies, given as indices [M] into ``ids``, with the planted copies of a phantom collection."""
    copies = _read_rows(root / "planted.csv")
    patients = {row["id"]: row["patient"] for row in _read_rows(root / "patients.csv")}
    original_of = {row["id"]: row["of"] for row in copies}
    original = np.array([original_of.get(name, name) for name in ids])
    patient = np.array([patients[name] for name in original.tolist()])
    same_image, same_patient = original[first] == original[second], patient[first] == patient[second]
    joined = connected(len(ids), np.column_stack([first[same_patient], second[same_patient]]))
    index = {name: number for number, name in enumerate(ids)}
    planted = Counter(row["kind"] for row in copies)
    found = Counter(row["kind"] for row in copies if joined[index[row["id"]]] == joined[index[row["of"]]])
    return Score(
        planted={kind: planted[kind] for kind in KINDS if planted[kind]},
        found={kind: found[kind] for kind in KINDS if planted[kind]},
        right=int(same_image.sum()),
        neighbours=int((same_patient & ~same_image).sum()),
        false=int((~same_patient).sum()),
    )


def _read_rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))
