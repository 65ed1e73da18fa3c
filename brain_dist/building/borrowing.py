"""Patients of a collection that names none, known from another one that shows the same pictures and names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from brain_dist.collection.examination import Examination
from brain_dist.collection.records import Record
from brain_dist.common.progress import Progress
from brain_dist.common.scratch import concatenated
from brain_dist.copies import search
from brain_dist.errors import UserError
from brain_dist.store.dataset import Dataset
from brain_dist.store.reader import read_thumbs


class Borrowed(NamedTuple):
    """What the patients of another collection say about N images.

    Attributes:
        records: the images. One without a patient that shows a picture of the other collection has the patient
            ``DATASET/PATIENT`` of that picture.
        persons: int64 [N], equal for images of one patient and for copies, known through either collection.
        summary: the manifest's entry: the other collection's ``name``, the ``images`` that got a patient, and the
            number of these ``patients``.
    """

    records: list[Record]
    persons: np.ndarray
    summary: dict[str, str | int]


def check_patients(known: Dataset) -> None:
    """Raise :class:`UserError` if a shard folder names no patients."""
    if not any(patient is not None for patient in known.columns["patient"]):
        raise UserError(f"--patients-from {known.root} names no patients; give shards of a collection that does")


def borrow_patients(examined: Examination, known: Dataset, workers: int, progress: Progress) -> Borrowed:
    """Give the images of a collection the patients of their exact and near copies in the shards ``known``.

    Raises:
        Fault: a shard of ``known`` is missing or damaged.
    """
    patient = known.columns["patient"]
    rows = np.flatnonzero([name is not None for name in patient])
    theirs = read_thumbs([(known, rows)], workers, progress)
    count = len(examined.records)
    findings = search.find_copies(
        concatenated([examined.thumbs, theirs]),
        [image.pixel_hash for image in examined.images] + known.columns["pixel_hash"][rows].tolist(),
        [("", None)] * (count + len(rows)),
        progress=partial(progress, f"comparing with {known.name}"),
        between=np.repeat([0, 1], [count, len(rows)]),
    )
    named = [
        *((record.dataset, record.patient) for record in examined.records),
        *zip(known.columns["dataset"][rows].tolist(), patient[rows].tolist(), strict=True),
    ]
    persons = _persons(findings.groups, named)
    name_of = {
        person: f"{dataset}/{name}" for person, (dataset, name) in zip(persons[count:], named[count:], strict=True)
    }
    records = [
        record if record.patient is not None else replace(record, patient=name_of.get(person))
        for record, person in zip(examined.records, persons, strict=False)
    ]
    given = [
        record.patient
        for record, before in zip(records, examined.records, strict=True)
        if record.patient is not None and before.patient is None
    ]
    summary: dict[str, str | int] = {"name": known.name, "images": len(given), "patients": len(set(given))}
    return Borrowed(records, persons[:count], summary)


def _persons(groups: np.ndarray, named: Sequence[tuple[str, str | None]]) -> np.ndarray:
    """int64 [N]: the first image of each image's person; joined by ``groups`` [N] and (dataset, patient) of each image.

    Two patients who share a picture are one person.
    """
    first: dict[tuple[str, str | None], int] = {}
    links = [(first.setdefault(name, row), row) for row, name in enumerate(named) if name[1] is not None]
    links += list(enumerate(groups.tolist()))
    return search.connected(len(groups), links)
