"""What a build was asked for, and whether a shard folder was built from the same request."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from brain_dist.collection.examination import examine_records
from brain_dist.collection.recipes import Recipe
from brain_dist.collection.records import Record, source_name
from brain_dist.common.files import crc32_file, is_inside, sha256_bytes
from brain_dist.common.progress import Progress
from brain_dist.common.text import printable
from brain_dist.common.workers import Run
from brain_dist.errors import UserError
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.store.manifest import MANIFEST
from brain_dist.store.options import BuildOptions


def check_places(source: Path, out: Path) -> None:
    """Raise :class:`UserError` if the shard folder would be inside the collection."""
    if is_inside(out, source):
        raise UserError(f"--out {out} is inside --source {source}; choose a folder outside it")


def request_entries(source: Path, recipe: Recipe, options: BuildOptions, records: list[Record]) -> dict[str, Any]:
    """The manifest's entries that describe the request, with types of JSON so that they can be compared."""
    stated = asdict(options)
    if stated["patients_from"] is None:  # datasets without it keep their version
        del stated["patients_from"]
    return {
        "name": recipe.name or source_name(source),
        "title": recipe.title,
        "source": recipe.source,
        "licence": recipe.licence,
        "citation": recipe.citation,
        "recipe": json.loads(json.dumps(recipe.as_dict())),
        "options": json.loads(json.dumps(stated)),
        "source_listing_sha256": _listing_sha256(source, records),
    }


def _listing_sha256(source: Path, records: list[Record]) -> str:
    """sha256 of paths and sizes, and of what tables, headers and masks say, which can change while no size does."""
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
            if record.mask is not None:
                lines.append(os.fsencode(record.mask) + f"\0{record.mask_crc32}\n".encode())
    return sha256_bytes(b"".join(lines))


def existing_dataset(out: Path, request: dict[str, Any]) -> Dataset | None:
    """The dataset in ``out`` if it was built from the same request; None if ``out`` is absent or empty.

    Raises:
        UserError: ``out`` contains something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    advice = "choose another --out or remove it"
    if not (out / MANIFEST).is_file():
        raise UserError(f"--out {out} exists and is not a complete shard folder; {advice}")
    try:
        dataset = open_dataset(out)
    except UserError as error:  # its advice alone, to build again, would end here again
        raise UserError(f"--out {out} is damaged ({error}); {advice}") from None
    manifest = dataset.manifest
    for key, meaning in (("name", "recipe"), ("recipe", "recipe"), ("source_listing_sha256", "list of source files")):
        if getattr(manifest, key, None) != request[key]:
            raise UserError(f"--out {out} contains shards built from another {meaning}; {advice}")
    options = getattr(manifest, "options", {})
    for key, value in {"patients_from": None, **request["options"]}.items():
        if options.get(key) != value:
            flag = key.replace("_", "-")
            raise UserError(f"--out {out} was built with --{flag} {options.get(key)}, not {value}; {advice}")
    for entry in filter(None, [*manifest.shards, getattr(manifest, "masks", None)]):
        file = out / entry.name
        if not file.is_file() or file.stat().st_size != entry.size:
            raise UserError(f"--out {out} is damaged ({entry.name} is missing or has another size); {advice}")
    return dataset


def check_contents(
    dataset: Dataset, out: Path, source: Path, recipe: Recipe, options: BuildOptions, records: list[Record],
    run: Run, progress: Progress,
) -> None:  # fmt: skip
    """Raise :class:`UserError` if images of the source changed since the dataset was built from them.

    Files that are stored byte for byte are compared by their checksum. The others are decoded again, and so are those
    that were left out because they were damaged or blank. Images that were left out for a test image of their group
    are not compared.
    """
    columns = dataset.columns
    row_of = {key: row for row, key in enumerate(columns["key"])}
    kept = [record for record in records if record.key in row_of]
    excluded = set(dataset.manifest.excluded.keys)
    unusable = {record.key for record in records} - row_of.keys() - excluded
    rows = [row_of[record.key] for record in kept]
    bytes_of_row = zip(columns["size"][rows].tolist(), columns["crc32"][rows].tolist(), strict=True)
    differing = {
        record.key
        for record, (size, crc32) in zip(kept, bytes_of_row, strict=True)
        if not _has_bytes(source / record.path, size, crc32)
    }
    if not differing and not unusable:
        return
    examined = examine_records(
        [record for record in records if record.key in differing | unusable], source, recipe, run,
        keep_blank=options.keep_blank, progress=partial(progress, "comparing"), smaller=options.smaller,
    )  # fmt: skip
    unchanged = unusable - {record.key for record in examined.records}
    for record, image in zip(examined.records, examined.images, strict=True):
        row = row_of.get(record.key)
        if row is None or image.payload is None or image.pixel_hash != columns["pixel_hash"][row]:
            continue
        stored = json.loads(columns["attributes"][row])
        if all(stored.get(name) == value for name, value in image.attributes.items()):
            unchanged.add(record.key)
    changed = dict.fromkeys(record.path for record in records if record.key in (differing | unusable) - unchanged)
    if changed:
        raise UserError(
            f"--out {out} contains shards built from other contents of {len(changed)} source files, such as"
            f" {printable(next(iter(changed)))}; choose another --out or remove it"
        )


def _has_bytes(file: Path, size: int, crc32: int) -> bool:
    try:
        return file.stat().st_size == size and crc32_file(file) == crc32
    except OSError:
        return False
