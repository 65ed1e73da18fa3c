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

import shutil
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image

from brain_dist.collection.recipes import CLASSES

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
    kinds = [kind for _, kind in zip(ids, cycle(available), strict=False)]
    leaks = [row for row in shuffled if row["part"] == TRAIN][: kinds.count("leak")]
    leaked = {row["id"] for row in leaks}
    others = iter([row for row in shuffled if row["id"] not in leaked])
    copies: list[Row] = []
    for number, (name, kind) in enumerate(zip(ids, kinds, strict=True), patients + 1):
        original = leaks.pop(0) if kind == "leak" else next(others)
        copy = {**original, "id": name, "of": original["id"], "kind": kind, "patient": f"P{number:04d}"}
        change = kind
        if kind == "conflict":
            copy["class"] = str(rng.choice([label for label in CLASSES if label != copy["class"]]))
            change = str(rng.choice(["duplicate", "reencoded"]))
        elif kind == "leak":
            copy["part"] = TEST
            change = str(rng.choice(["reencoded", "cropped", "mirrored"]))
        if change == "duplicate":
            shutil.copyfile(image_path(root, original), image_path(root, copy))
        else:
            quality = int(rng.integers(30, 81)) if change in ("reencoded", "mirrored") else QUALITY
            with Image.open(image_path(root, original)) as image:
                _change(image, change, rng).save(image_path(root, copy), quality=quality)
        copies.append(copy)
    return copies


def _change(image: Image.Image, change: str, rng: np.random.Generator) -> Image.Image:
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
