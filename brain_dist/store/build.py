"""Build a shard folder from a source folder and a recipe: examine, find copies, group, split, write."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from brain_dist import __version__
from brain_dist.collection.discovery import find_records
from brain_dist.collection.examination import Examination, examine_all
from brain_dist.collection.pixels import JPEG_QUALITY
from brain_dist.collection.recipes import Recipe
from brain_dist.collection.records import Record, source_name
from brain_dist.common.files import partial_folder, sha256_bytes, write_durably
from brain_dist.common.progress import Progress, no_progress
from brain_dist.common.text import printable
from brain_dist.common.workers import Run, worker_pool
from brain_dist.copies import search
from brain_dist.errors import UserError
from brain_dist.store.coverage import check_split
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.store.index import INDEX, index_bytes
from brain_dist.store.manifest import FORMAT, MANIFEST, BuiltManifest, Excluded, ShardEntry, count_classes
from brain_dist.store.options import BuildOptions
from brain_dist.store.split import LEFT_OUT, split_images
from brain_dist.store.tar import Sample, Shard, plan_shards, write_shard


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
    progress: Progress = no_progress,
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
        progress: called with (stage, done, total).

    Raises:
        UserError: the input is faulty, images or splits lack a class, ``out`` contains something else, or is not
            writable.
    """
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--out {out} is inside --source {source}; choose a folder outside it")
    with worker_pool(workers) as run:  # the processes start while the files are listed
        records, warnings = find_records(recipe, source, allow_missing=allow_missing)
        request = _request_entries(source, recipe, options, records)
        existing = _existing_dataset(out, request)
        if existing is not None:
            _check_contents(existing, out, source, recipe, options, records, run, progress)
            return BuildResult(existing, warnings, fresh=False)
        warnings += _check_classes(records, recipe.classes, options, allow_missing=allow_missing)
        with partial_folder(out) as folder:
            warnings += _write_folder(
                folder, source, recipe, options, records, request, run, progress, allow_missing=allow_missing
            )
    return BuildResult(open_dataset(out), warnings, fresh=True)


def _check_classes(
    records: list[Record], classes: tuple[str, ...], options: BuildOptions, *, allow_missing: bool
) -> list[str]:
    """Check, before images are decoded, that classes and splits have images, as far as patients tell.

    Returns:
        Warnings.

    Raises:
        UserError: a class or a split would have no images.
    """
    known = [record for record in records if record.label >= 0]
    if len(known) < len(records):
        return []  # only their damaged headers state the classes of some files
    absent = [name for label, name in enumerate(classes) if label not in {record.label for record in records}]
    if absent and not (allow_missing or options.split == "test"):
        others = ", ".join(name for name in classes if name not in absent)
        raise UserError(
            f"no images of {', '.join(absent)}, which no network could learn from these shards; build with a recipe"
            f" whose classes are {others}, or with --allow-missing to join the shards with others"
        )
    first: dict[tuple[str, str], int] = {}
    groups = [
        row if record.patient is None else first.setdefault((record.dataset, record.patient), row)
        for row, record in enumerate(records)
    ]
    split = split_images(records, np.array(groups), classes, options)
    check_split(split, records, np.array(groups), classes, allow_missing=allow_missing)
    return [f"no images of {name}" for name in absent]


def _request_entries(source: Path, recipe: Recipe, options: BuildOptions, records: list[Record]) -> dict[str, Any]:
    """The manifest's entries that describe the request, with types of JSON so that they can be compared."""
    return {
        "name": recipe.name or source_name(source),
        "title": recipe.title,
        "source": recipe.source,
        "licence": recipe.licence,
        "citation": recipe.citation,
        "recipe": json.loads(json.dumps(recipe.as_dict())),
        "options": json.loads(json.dumps(asdict(options))),
        "source_listing_sha256": _listing_sha256(source, records),
    }


def _listing_sha256(source: Path, records: list[Record]) -> str:
    """sha256 of paths and sizes, and of what tables and headers say, which can change while no size does."""
    lines = []
    for path, slices in groupby(records, key=lambda record: record.path):
        file = source / path
        try:
            size = file.stat().st_size if file.is_file() else -1
        except OSError:
            size = -1
        lines.append(os.fsencode(path) + f"\0{size}\n".encode())
        for record in slices:
            values = (record.frame, record.label, record.patient, record.published, record.attributes)
            lines.append(f"{json.dumps(values, sort_keys=True)}\n".encode())
    return sha256_bytes(b"".join(lines))


def _existing_dataset(out: Path, request: dict[str, Any]) -> Dataset | None:
    """The dataset in ``out`` if it was built from the same request; None if ``out`` is absent or empty.

    Raises:
        UserError: ``out`` contains something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    advice = "choose another --out or remove it"
    if not (out / MANIFEST).is_file():
        raise UserError(f"--out {out} exists and is not a complete shard folder; {advice}")
    dataset = open_dataset(out)
    manifest = dataset.manifest
    for key, meaning in (("name", "recipe"), ("recipe", "recipe"), ("source_listing_sha256", "list of source files")):
        if getattr(manifest, key, None) != request[key]:
            raise UserError(f"--out {out} contains shards built from another {meaning}; {advice}")
    # earlier releases kept blank images and had one quality
    options = {"keep_blank": True, "jpeg_quality": JPEG_QUALITY, **getattr(manifest, "options", {})}
    for key, value in request["options"].items():
        if options.get(key) != value:
            flag = key.replace("_", "-")
            raise UserError(f"--out {out} was built with --{flag} {options.get(key)}, not {value}; {advice}")
    return dataset


def _check_contents(
    dataset: Dataset, out: Path, source: Path, recipe: Recipe, options: BuildOptions, records: list[Record],
    run: Run, progress: Progress,
) -> None:  # fmt: skip
    """Raise :class:`UserError` if images of the source changed since the dataset was built from them.

    Files that are stored byte for byte are compared by their checksum. The others are decoded again.
    """
    columns = dataset.columns
    row_of = {key: row for row, key in enumerate(columns["key"])}
    stored = [record for record in records if record.key in row_of]  # not left out
    rows = [row_of[record.key] for record in stored]
    bytes_of_row = zip(columns["size"][rows].tolist(), columns["crc32"][rows].tolist(), strict=True)
    differing = [
        record
        for record, (size, crc32) in zip(stored, bytes_of_row, strict=True)
        if not _has_bytes(source / record.path, size, crc32)
    ]
    if not differing:
        return
    examined = examine_all(
        differing, source, recipe, run, skip_bad=options.skip_bad, keep_blank=options.keep_blank,
        progress=partial(progress, "comparing"), smaller=options.smaller,
    )  # fmt: skip
    unchanged = {
        record.key
        for record, image in zip(examined.records, examined.images, strict=True)
        if image.payload is not None and image.pixel_hash == columns["pixel_hash"][row_of[record.key]]
    }
    changed = dict.fromkeys(record.path for record in differing if record.key not in unchanged)
    if changed:
        raise UserError(
            f"--out {out} contains shards built from other contents of {len(changed)} source files, such as"
            f" {printable(next(iter(changed)))}; choose another --out or remove it"
        )


def _has_bytes(file: Path, size: int, crc32: int) -> bool:
    try:
        return file.stat().st_size == size and zlib.crc32(file.read_bytes()) == crc32
    except OSError:
        return False


def _write_folder(
    folder: Path, source: Path, recipe: Recipe, options: BuildOptions, records: list[Record], request: dict[str, Any],
    run: Run, progress: Progress, *, allow_missing: bool,
) -> list[str]:  # fmt: skip
    """Write shards, index and, last, the manifest into ``folder``; returns warnings."""
    spool = folder / "spool"  # images that were encoded again, so that none is decoded twice
    spool.mkdir()
    examined = examine_all(
        records, source, recipe, run, skip_bad=options.skip_bad, keep_blank=options.keep_blank,
        progress=partial(progress, "decoding"), spool=spool, smaller=options.smaller,
    )  # fmt: skip
    records = examined.records
    patients = [(record.dataset, record.patient) for record in records]
    hashes = [image.pixel_hash for image in examined.images]
    findings = search.find_copies(examined.thumbs, hashes, patients, progress=partial(progress, "comparing"))
    labels = np.array([record.label for record in records])
    split = split_images(records, findings.groups, recipe.classes, options)
    warnings = check_split(split, records, findings.groups, recipe.classes, allow_missing=allow_missing)
    split_of_image = np.array([*split.names, ""], dtype=object)[split.codes]  # LEFT_OUT is the last one

    rows = _index_rows(examined, findings.groups, split_of_image)
    samples = _samples(examined, rows, recipe.classes, source, spool)
    shards = plan_shards(request["name"], samples, split.codes, split.names, options.seed, options.shard_size)
    entries, table = _write_shards(folder, shards, rows, run, progress)
    shutil.rmtree(spool)
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
        audit=search.counts(findings, labels, patients, split.codes),
        skipped=examined.bad + examined.blank,
        shards=entries,
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
        rows.append({
            "key": record.key, "size": image.size, "crc32": image.crc32, "label": record.label,
            "dataset": record.dataset, "split": split, "group": examined.records[group].key, "patient": record.patient,
            "width": image.width, "height": image.height, "mode": image.mode, "pixel_hash": image.pixel_hash,
            "phash": image.phash, "source": printable(record.path), "head_x": x, "head_y": y, "head_w": width,
            "head_h": height, "attributes": json.dumps(record.attributes, sort_keys=True, separators=(",", ":")),
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


def _excluded(records: list[Record], classes: tuple[str, ...]) -> Excluded:
    """The manifest's entry for images that share a group with the test dataset."""
    counts: dict[str, dict[str, int]] = {}
    for record in records:
        by_class = counts.setdefault(record.dataset, dict.fromkeys(classes, 0))
        by_class[classes[record.label]] += 1
    return Excluded(len(records), counts, [record.key for record in records])
