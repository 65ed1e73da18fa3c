"""Build a shard folder from a source folder and a recipe: examine, find copies, group, split, write."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from brain_dist import __version__
from brain_dist.building.borrowing import borrow_patients, check_patients
from brain_dist.building.coverage import check_classes, check_split
from brain_dist.building.parts import read_parts, remove_parts, spool_folder
from brain_dist.building.request import check_contents, check_places, existing_dataset, request_entries
from brain_dist.building.split import LEFT_OUT, split_images
from brain_dist.building.tar import Sample, Shard, plan_shards, write_shard
from brain_dist.collection.discovery import find_records
from brain_dist.collection.examination import (
    Examination,
    channel_warnings,
    check_usable,
    examine_records,
    spooled_mask,
)
from brain_dist.collection.recipes import Recipe
from brain_dist.collection.records import Record
from brain_dist.common.files import partial_folder, sha256_bytes, write_durably
from brain_dist.common.progress import Progress, no_progress
from brain_dist.common.text import printable
from brain_dist.common.workers import Run, worker_pool
from brain_dist.copies import search
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.store.index import INDEX, index_bytes
from brain_dist.store.lesions import MASKS, masks_entry
from brain_dist.store.manifest import FORMAT, MANIFEST, BuiltManifest, Excluded, ShardEntry, count_classes
from brain_dist.store.options import BuildOptions


class BuildResult(NamedTuple):
    """A complete shard folder.

    Attributes:
        dataset: the folder, opened.
        warnings: one line each.
        fresh: False if the folder existed already, built from the same request.
    """

    dataset: Dataset
    warnings: list[str]
    fresh: bool


def build(
    source: Path, out: Path, recipe: Recipe, options: BuildOptions, *, workers: int, allow_missing: bool = False,
    parts: int | None = None, known: Dataset | None = None, progress: Progress = no_progress,
) -> BuildResult:  # fmt: skip
    """Build the shard folder ``out`` from the images in ``source``.

    The same source, recipe and options give the same bytes, with any number of workers. If the process is killed,
    ``out`` is unchanged.

    Args:
        source: the collection.
        out: the shard folder to write.
        recipe: how the collection is stored.
        options: what decides the bytes, besides recipe and source.
        workers: number of processes.
        allow_missing: whether the collection may lack a class of the recipe, or a split a class of the collection.
        parts: number of parts that :func:`brain_dist.building.parts.examine_part` has examined, all of them; None
            examines the images here.
        known: shards of a collection that names patients; images without a patient get that of their copy there.
            ``options.patients_from`` is their version.
        progress: called with (stage, done, total).

    Raises:
        UserError: the input is faulty, images or splits lack a class, ``out`` contains something else, or is not
            writable.
    """
    check_places(source, out)
    if known is not None:
        check_patients(known)
    with worker_pool(workers) as run:  # the processes start while the files are listed
        records, warnings = find_records(recipe, source, allow_missing=allow_missing)
        request = request_entries(source, recipe, options, records)
        existing = existing_dataset(out, request)
        if existing is not None:
            check_contents(existing, out, source, recipe, options, records, run, progress)
            if parts is not None:  # a job that was stopped after its last rename
                remove_parts(out)
            return BuildResult(existing, warnings, fresh=False)
        warnings += check_classes(records, recipe.classes, options, allow_missing=allow_missing)
        with partial_folder(out) as folder:
            if parts is not None:
                spool = spool_folder(out)
                examined = read_parts(out, parts, records, source, request, run, progress)
            else:
                spool = folder / "spool"  # images that were encoded again, so that none is decoded twice
                spool.mkdir()
                examined = examine_records(
                    records, source, recipe, run, keep_blank=options.keep_blank,
                    progress=partial(progress, "decoding"), spool=spool, smaller=options.smaller,
                )  # fmt: skip
            check_usable(examined, records, recipe, skip_bad=options.skip_bad)
            warnings += _write_folder(
                folder, source, spool, recipe, options, examined, request, run, progress,
                allow_missing=allow_missing, known=known, workers=workers,
            )  # fmt: skip
            shutil.rmtree(folder / "spool", ignore_errors=True)
    if parts is not None:
        remove_parts(out)
    return BuildResult(open_dataset(out), warnings, fresh=True)


def _write_folder(
    folder: Path, source: Path, spool: Path, recipe: Recipe, options: BuildOptions, examined: Examination,
    request: dict[str, Any], run: Run, progress: Progress, *, allow_missing: bool, known: Dataset | None, workers: int,
) -> list[str]:  # fmt: skip
    """Write shards, index and, last, the manifest into ``folder``; returns warnings."""
    audit: dict[str, Any] = {}
    if known is not None:
        borrowed = borrow_patients(examined, known, workers, progress)
        examined = examined._replace(records=borrowed.records)
        audit["patients_from"] = borrowed.summary
    records = examined.records
    patients = [(record.dataset, record.patient) for record in records]
    persons = patients if known is None else [("", str(person)) for person in borrowed.persons]
    hashes = [image.pixel_hash for image in examined.images]
    findings = search.find_copies(examined.thumbs, hashes, persons, progress=partial(progress, "comparing"))
    labels = np.array([record.label for record in records])
    split = split_images(records, findings.groups, recipe.classes, options)
    warnings = check_split(split, records, findings.groups, recipe.classes, allow_missing=allow_missing)
    warnings += channel_warnings(examined, recipe)
    split_of_image = np.array([*split.names, ""], dtype=object)[split.codes]  # LEFT_OUT is the last one

    rows = _index_rows(examined, findings.groups, split_of_image)
    samples = _samples(examined, rows, recipe.classes, source, spool)
    shards = plan_shards(request["name"], samples, split.codes, split.names, options.seed, options.shard_size)
    entries, table = _write_shards(folder, shards, rows, run, progress)
    index = index_bytes(table)
    write_durably(folder / INDEX, index)
    manifest = BuiltManifest(
        format=FORMAT,
        classes=list(recipe.classes),
        counts=count_classes(split_of_image, labels, split.names, recipe.classes),
        samples=len(table),
        groups=len(np.unique(findings.groups[split.codes != LEFT_OUT])),
        **request,
        split=split.description,
        excluded=_excluded([records[row] for row in np.flatnonzero(split.codes == LEFT_OUT)], recipe.classes),
        audit=search.counts(findings, labels, patients, split.codes) | audit,
        skipped=examined.bad + examined.blank,
        shards=entries,
        masks=_write_masks(folder, spool, examined, table),
        index_sha256=sha256_bytes(index),
        builder=__version__,
    )
    write_durably(folder / MANIFEST, manifest.to_bytes())
    return warnings


def _index_rows(examined: Examination, groups: np.ndarray, splits: np.ndarray) -> list[dict[str, Any]]:
    """A row of the index for each of N images, without its place (shard and offset).

    Args:
        examined: the images.
        groups: int [N], the first image of each image's group; its key names the group.
        splits: object [N], names.
    """
    rows = []
    for record, image, group, split in zip(examined.records, examined.images, groups, splits, strict=True):
        x, y, width, height = image.head
        attributes = record.attributes | image.attributes
        rows.append({
            "key": record.key, "size": image.size, "crc32": image.crc32, "label": record.label,
            "dataset": record.dataset, "split": split, "group": examined.records[group].key, "patient": record.patient,
            "width": image.width, "height": image.height, "mode": image.mode, "pixel_hash": image.pixel_hash,
            "phash": image.phash, "source": printable(record.path), "head_x": x, "head_y": y, "head_w": width,
            "head_h": height, "attributes": json.dumps(attributes, sort_keys=True, separators=(",", ":")),
        })  # fmt: skip
    return rows


def _samples(
    examined: Examination, rows: list[dict[str, Any]], classes: tuple[str, ...], source: Path, spool: Path
) -> list[Sample]:
    """The samples of N images: their bytes are in the source folder, or in ``spool`` if they were encoded again."""
    samples = []
    for number, (record, image, row) in enumerate(zip(examined.records, examined.images, rows, strict=True)):
        metadata = {key: row[key] for key in ("dataset", "patient", "group", "source", "split")}
        metadata["class"] = classes[record.label]
        file = source / record.path if image.payload is None else spool / record.key
        text = json.dumps(metadata, sort_keys=True, separators=(",", ":"))
        samples.append(Sample(number, record.key, image.ext, file, image.size, image.crc32, record.label, text))
    return samples


def _write_shards(
    folder: Path, shards: list[Shard], rows: list[dict[str, Any]], run: Run, progress: Progress
) -> tuple[list[ShardEntry], list[dict[str, Any]]]:
    """Write the shards; returns their entries in the manifest and the index rows in the order of the shards."""
    entries, table = [], []
    for shard, (entry, offsets) in zip(shards, run(partial(write_shard, folder=folder), shards, 1), strict=True):
        entries.append(entry)
        for sample, offset in zip(shard.samples, offsets, strict=True):
            table.append(rows[sample.row] | {"shard": shard.name, "offset": offset})
        progress("writing shards", len(entries), len(shards))
    return entries, table


def _write_masks(folder: Path, spool: Path, examined: Examination, table: list[dict[str, Any]]) -> ShardEntry | None:
    """Write the masks of the index's rows; returns the manifest's entry, None if no image has one."""
    images = zip(examined.records, examined.images, strict=True)
    masked = {record.key for record, image in images if "lesion_area" in image.attributes}
    masks = {row["key"]: spooled_mask(spool, row["key"]).read_bytes() for row in table if row["key"] in masked}
    if not masks:
        return None
    data, entry = masks_entry(masks)
    write_durably(folder / MASKS, data)
    return entry


def _excluded(records: list[Record], classes: tuple[str, ...]) -> Excluded:
    """The manifest's entry for images that share a group with the test dataset."""
    counts: dict[str, dict[str, int]] = {}
    for record in records:
        by_class = counts.setdefault(record.dataset, dict.fromkeys(classes, 0))
        by_class[classes[record.label]] += 1
    return Excluded(len(records), counts, [record.key for record in records])
