"""Decode all images of published collections and find every pair of copies. The collections are only read.

:func:`survey_collections` decodes and compares, :func:`pairs_table` lists the pairs (``pairs.parquet``).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.collection.discovery import find_records
from brain_dist.collection.examination import BadImages, Examination, examine_all
from brain_dist.collection.measures import are_blank
from brain_dist.collection.recipes import Recipe
from brain_dist.collection.records import Record
from brain_dist.common.progress import Progress
from brain_dist.common.scratch import concatenated, gathered
from brain_dist.common.text import printable
from brain_dist.common.workers import worker_pool
from brain_dist.copies.search import Findings, find_copies
from brain_dist.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

# Of more exact copies than this in a collection or two, not all pairs are listed. Each image is listed with the first
# of every collection, split and class, so that no count changes.
CROWD = 64
TRAIN, TEST = "train", "test"
_PAIR = [("first", "i8"), ("second", "i8"), ("exact", "?"), ("similarity", "f4"), ("mirrored", "?"), ("moved", "?")]


@dataclass(frozen=True)
class Source:
    """A collection to audit: its name in the results, its folder, and the recipe that describes the folder."""

    name: str
    folder: Path
    recipe: Recipe


@dataclass(frozen=True, eq=False)
class Survey:
    """N images of all collections and their M pairs of copies.

    Attributes:
        names: names of the collections.
        path: object [N], path in the collection, safe to print.
        file: object [N], path of the file.
        slice: object [N], number of the slice in the file, None if the file has only one.
        label: object [N], class name.
        split: object [N], published split or None.
        patient: object [N], patient or None.
        collection: int64 [N], position in ``names``.
        part: int64 [N], position in the parts of that collection's recipe.
        blank: bool [N], the image shows nothing, and is not a copy of any other.
        first: int64 [M], first image of each pair; less than ``second``.
        second: int64 [M], second image of each pair.
        exact: bool [M], the two have the same pixels.
        similarity: float32 [M], 1 for exact copies.
        mirrored: bool [M], one of the two is mirrored.
        moved: bool [M], the two agree only after registration.
        skipped: damaged files that were skipped: ``collection``, ``source`` and ``reason`` of each.
        warnings: messages about the folders, for the user.
    """

    names: tuple[str, ...]
    path: np.ndarray
    file: np.ndarray
    slice: np.ndarray
    label: np.ndarray
    split: np.ndarray
    patient: np.ndarray
    collection: np.ndarray
    part: np.ndarray
    blank: np.ndarray
    first: np.ndarray
    second: np.ndarray
    exact: np.ndarray
    similarity: np.ndarray
    mirrored: np.ndarray
    moved: np.ndarray
    skipped: list[dict[str, str]]
    warnings: list[str]

    def contradicting(self, pairs: np.ndarray) -> np.ndarray:
        """bool [len(pairs)]: the labels of these pairs contradict each other. "tumor" agrees with any tumour class."""
        first, second = self.label[self.first[pairs]], self.label[self.second[pairs]]
        vague = ((first == "tumor") & (second != "notumor")) | ((second == "tumor") & (first != "notumor"))
        return (first != second) & ~vague


def survey_collections(sources: Sequence[Source], *, workers: int, skip_bad: bool, progress: Progress) -> Survey:
    """Decode all images of ``sources`` and compare them.

    Raises:
        BadImages: files of any collection cannot be decoded, and ``skip_bad`` is false.
        UserError: a folder does not fit its recipe. All folders are checked before anything is decoded. The messages
            start with the collection's name.
    """
    listed, warnings = _list_records(sources)
    decoded = _decode(sources, listed, workers, skip_bad, progress)
    numbers = [number for number, examination in enumerate(decoded) for _ in examination.records]
    records = [record for examination in decoded for record in examination.records]
    owners = [sources[number] for number in numbers]
    columns: dict[str, list[Any]] = {
        "path": [printable(record.path) for record in records],
        "file": [owner.folder / record.path for owner, record in zip(owners, records, strict=True)],
        "slice": [record.frame for record in records],
        "label": [owner.recipe.classes[record.label] for owner, record in zip(owners, records, strict=True)],
        "split": [record.published for record in records],
        "patient": [record.patient for record in records],
    }
    hashes = [image.pixel_hash for examination in decoded for image in examination.images]
    thumbs = concatenated([examination.thumbs for examination in decoded])
    collection = np.array(numbers, dtype=np.int64)
    kinds = list(zip(numbers, columns["split"], columns["label"], strict=True))
    return Survey(
        names=tuple(source.name for source in sources),
        **{key: np.array(values, dtype=object) for key, values in columns.items()},
        collection=collection,
        part=np.array([record.part for record in records], dtype=np.int64),
        blank=are_blank(thumbs),
        **_all_pairs(thumbs, hashes, collection, kinds, progress),
        skipped=[
            {"collection": source.name, **entry}
            for source, examination in zip(sources, decoded, strict=True)
            for entry in examination.bad
        ],
        warnings=warnings,
    )


def _list_records(sources: Sequence[Source]) -> tuple[list[list[Record]], list[str]]:
    """The records of each collection, and all warnings."""
    listed, warnings = [], []
    for source in sources:
        try:
            records, messages = find_records(source.recipe, source.folder)
        except UserError as error:
            raise UserError(f"{source.name}: {error}") from None
        listed.append(records)
        warnings += [f"{source.name}: {message}" for message in messages]
    return listed, warnings


def _decode(
    sources: Sequence[Source], listed: list[list[Record]], workers: int, skip_bad: bool, progress: Progress
) -> list[Examination]:
    """The images of each collection; the error about damaged files lists those of all of them."""
    decoded, damaged = [], []
    with worker_pool(workers) as run:
        for source, records in zip(sources, listed, strict=True):
            try:
                decoded.append(
                    examine_all(
                        records, source.folder, source.recipe, run, skip_bad=skip_bad,
                        progress=partial(progress, f"decoding {source.name}"),
                    )
                )  # fmt: skip
            except BadImages as error:
                damaged += [f"{source.name}: {line}" for line in error.files]
            except UserError as error:
                raise UserError(f"{source.name}: {error}") from None
    if damaged:
        raise BadImages(damaged)
    return decoded


def _all_pairs(
    thumbs: np.ndarray, hashes: list[str], collection: np.ndarray, kinds: Sequence[Hashable], progress: Progress
) -> dict[str, np.ndarray]:
    """The pairs of N images within each collection, and between each two.

    Each collection is compared by itself, and each two without others: which of the pairs that need registration are
    found depends on all images that are compared, and no count may depend on other collections.
    """
    numbers = range(int(collection.max()) + 1)
    parts = [*((number, number) for number in numbers), *combinations(numbers, 2)]
    tables = []
    for done, (one, other) in enumerate(parts):
        images = np.flatnonzero((collection == one) | (collection == other))

        def step(part: int, total: int, done: int = done) -> None:
            progress("comparing", done * 1000 + part * 1000 // total, len(parts) * 1000)

        findings = find_copies(
            gathered(thumbs, images),
            [hashes[image] for image in images],
            [("", None)] * len(images),  # only copies are needed here; the counts use the patients
            progress=step,
            between=None if one == other else collection[images],
        )
        table = _image_pairs(findings, [kinds[image] for image in images.tolist()])
        table["first"], table["second"] = images[table["first"]], images[table["second"]]
        tables.append(table[(collection[table["first"]] != collection[table["second"]]) == (one != other)])
    pairs = np.sort(np.concatenate(tables))
    return {name: pairs[name].copy() for name, _ in _PAIR}


def _image_pairs(findings: Findings, kinds: Sequence[Hashable]) -> np.ndarray:
    """Expand pairs of distinct pixels to pairs of images: a near copy of an image is a near copy of its exact copies.

    ``kinds`` [N] is the collection, split and class of each image. In a crowd of exact copies, the first image of each
    kind represents the others.
    """
    copies: dict[int, list[int]] = {}
    for image, leader in enumerate(findings.copy_of.tolist()):
        copies.setdefault(leader, []).append(image)
    representatives = {
        leader: images if len(images) <= CROWD else list({kinds[image]: image for image in reversed(images)}.values())
        for leader, images in copies.items()
    }
    rows: list[tuple[int, int, bool, float, bool, bool]] = []
    for leader, images in copies.items():
        pairs = {(min(a, b), max(a, b)) for a in representatives[leader] for b in images if a != b}
        rows += [(a, b, True, 1.0, False, False) for a, b in pairs]
    near = findings.near
    columns = (near.first, near.second, near.similarity, near.mirrored, near.moved)
    for first, second, similarity, mirrored, moved in zip(*(column.tolist() for column in columns), strict=True):
        ends = (*product(representatives[first], copies[second]), *product(copies[first], representatives[second]))
        pairs = {(min(a, b), max(a, b)) for a, b in ends}
        rows += [(a, b, False, similarity, mirrored, moved) for a, b in pairs]
    return np.array(rows, dtype=_PAIR)


def pairs_table(survey: Survey) -> pa.Table:
    """One row per pair.

    Columns: ``kind`` (exact or near), ``similarity``, ``mirrored``, ``moved``, and ``path``, ``collection``, ``split``,
    ``label``, ``patient`` and ``slice`` of both images with the suffix ``_a`` or ``_b``; null if unknown.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for suffix, images in (("a", survey.first), ("b", survey.second)):
        values = {"collection": np.array(survey.names, dtype=object)[survey.collection[images]]}
        values |= {key: getattr(survey, key)[images] for key in ("path", "split", "label", "patient")}
        columns |= {f"{key}_{suffix}": pa.array(value.tolist(), pa.string()) for key, value in values.items()}
        columns[f"slice_{suffix}"] = pa.array(survey.slice[images].tolist(), pa.int32())
    columns["kind"] = pa.array(np.where(survey.exact, "exact", "near").tolist(), pa.string())
    columns["similarity"] = pa.array(survey.similarity)
    columns["mirrored"], columns["moved"] = pa.array(survey.mirrored), pa.array(survey.moved)
    return pa.table(columns)
