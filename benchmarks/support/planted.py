"""Compares the copies that an audit finds with the planted copies of a phantom collection."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brain_dist.copies.search import connected
from brain_dist.phantom.planting import KINDS


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
