"""Planted copies: pictures that a phantom collection holds twice, so that what the audit finds can be compared with
what is there.

| kind | a copy is |
|---|---|
| duplicate | the same bytes |
| reencoded | a JPEG of quality 30 to 80 |
| rescaled | 0.5 to 1.6 times as many pixels a side |
| cropped | cut by 2 to 9 % of the picture on each side, each by another share, and left at that size |
| brightness | 0.6 to 1.5 times as bright, and up to 20 gray values up or down |
| mirrored | flipped left to right, a JPEG of quality 30 to 80 |
| conflict | put under another class: the same bytes, or re-encoded |
| leak | of a training image, among the test images: re-encoded, cropped or mirrored (where there is such a split) |

No picture is copied twice. Each copy has a patient of its own, who is, leaks apart, in the same part of the published
split as the picture's. It has no row in ``truth.csv`` and no mask, as these are of what was drawn; its original has.
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

from brain_dist.copies.search import connected

KINDS = ("duplicate", "reencoded", "rescaled", "cropped", "brightness", "mirrored", "conflict", "leak")
TRAIN, TEST = "Training", "Testing"  # folders of the published split
QUALITY = 95  # of JPEGs
Row = dict[str, str | float]


def picture(root: Path, row: Row) -> Path:
    """The file of an image: ``row`` has its id, its class and its ``part``, the published split's folder or ""."""
    return root / str(row["part"]) / str(row["class"]) / f"{row['id']}.jpg"


def plant(root: Path, rows: Sequence[Row], ids: Sequence[str], patients: int, seed: int) -> list[Row]:
    """Write a copy under each of ``ids`` (at most as many as images), of all kinds in equal parts.

    ``rows`` (id, class, part) are the images there are; ``patients`` is the number of their patients. Returns the
    copies' rows: id, of, kind, class, part, patient.
    """
    from brain_dist.phantom.patients import CLASSES

    rng = np.random.default_rng([seed, 7])
    order = [rows[index] for index in rng.permutation(len(rows))]
    kinds = KINDS if any(row["part"] for row in rows) else KINDS[:-1]
    chosen = [kinds[index % len(kinds)] for index in range(len(ids))]
    leaks = [row for row in order if row["part"] == TRAIN][: chosen.count("leak")]
    leaked = {row["id"] for row in leaks}
    sources = {True: iter(leaks), False: (row for row in order if row["id"] not in leaked)}
    copies: list[Row] = []
    for number, (name, kind) in enumerate(zip(ids, chosen, strict=True), patients + 1):
        source = next(sources[kind == "leak"])
        copy = {**source, "id": name, "of": source["id"], "kind": kind, "patient": f"P{number:04d}"}
        way = kind
        if kind == "conflict":
            copy["class"] = str(rng.choice([label for label in CLASSES if label != source["class"]]))
            way = rng.choice(["duplicate", "reencoded"])
        elif kind == "leak":
            copy["part"] = TEST
            way = rng.choice(["reencoded", "cropped", "mirrored"])
        _copy(picture(root, source), picture(root, copy), way, rng)
        copies.append(copy)
    return copies


def _copy(source: Path, target: Path, way: str, rng: np.random.Generator) -> None:
    if way == "duplicate":
        shutil.copyfile(source, target)
        return
    quality = int(rng.integers(30, 81)) if way in ("reencoded", "mirrored") else QUALITY
    with Image.open(source) as image:
        _changed(image, way, rng).save(target, quality=quality)


def _changed(image: Image.Image, way: str, rng: np.random.Generator) -> Image.Image:
    side = image.width
    if way == "rescaled":
        others = [pixels for pixels in range(round(0.5 * side), round(1.6 * side) + 1) if pixels != side]
        return image.resize((int(rng.choice(others)),) * 2, Image.Resampling.BICUBIC)
    if way == "cropped":
        left, top, right, bottom = np.rint(rng.uniform(0.02, 0.09, 4) * side).astype(int).tolist()
        return image.crop((left, top, side - right, side - bottom))
    if way == "brightness":
        gain, shift = rng.uniform(0.6, 1.5), rng.uniform(-20, 20)
        return image.point([round(min(max(gain * value + shift, 0), 255)) for value in range(256)])
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if way == "mirrored" else image


@dataclass(frozen=True)
class Score:
    """What was found of what was planted.

    ``planted`` and ``found``: copies of each kind, and those that are in one set with their original, as a pair or by
    way of other pictures of one person. Pairs: ``right`` of a picture and its copy; ``neighbours`` of two slices of one
    person, or of their copies; ``false`` of two persons.
    """

    planted: dict[str, int]
    found: dict[str, int]
    right: int
    neighbours: int
    false: int

    @property
    def recall(self) -> float:
        return sum(self.found.values()) / sum(self.planted.values())

    @property
    def precision(self) -> float:
        """Share of the planted ones among all pairs but the neighbours."""
        return self.right / max(1, self.right + self.false)


def score(root: Path, ids: Sequence[str], first: np.ndarray, second: np.ndarray) -> Score:
    """Compare pairs (positions in ``ids``) with a phantom collection's planted.csv."""
    planted = _rows(root / "planted.csv")
    patient = {row["id"]: row["patient"] for row in _rows(root / "patients.csv")}
    original = {row["id"]: row["of"] for row in planted}
    source = [original.get(name, name) for name in ids]
    person = np.array([patient[name] for name in source])
    same, alike = np.array(source)[first] == np.array(source)[second], person[first] == person[second]
    joined = connected(len(ids), np.column_stack([first[alike], second[alike]]))
    at = {name: position for position, name in enumerate(ids)}
    found = Counter(row["kind"] for row in planted if joined[at[row["id"]]] == joined[at[row["of"]]])
    kinds = Counter(row["kind"] for row in planted)
    return Score(
        planted={kind: kinds[kind] for kind in KINDS if kinds[kind]},
        found={kind: found[kind] for kind in KINDS if kinds[kind]},
        right=int(same.sum()),
        neighbours=int((alike & ~same).sum()),
        false=int((~alike).sum()),
    )


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))
