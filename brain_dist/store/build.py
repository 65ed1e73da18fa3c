"""From a recipe and a source folder to a finished shard folder: examine, audit, group, split, write, describe."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from itertools import groupby
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from brain_dist import __version__
from brain_dist.collection.examination import examine_all
from brain_dist.collection.names import source_name
from brain_dist.collection.pixels import Examined
from brain_dist.collection.recipes import Recipe
from brain_dist.collection.records import Record, find_records
from brain_dist.common.files import partial_folder, write_durably
from brain_dist.common.text import printable
from brain_dist.common.workers import Run, worker_pool
from brain_dist.copies import search
from brain_dist.errors import UserError
from brain_dist.store import split
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.store.index import INDEX, index_bytes
from brain_dist.store.manifest import FORMAT, MANIFEST
from brain_dist.store.tar import Sample, Shard, cut, write_shard

Progress = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True)
class Options:
    """What decides the bytes of a build, besides the recipe and the source (the number of workers does not)."""

    split: str = "grouped"
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    seed: int = 0
    max_side: int | None = None
    shard_size: str = "64MB"
    skip_bad: bool = False
    folds: int | str | None = None  # of the split kfold: how many, or "published"
    test_on: str | None = None  # of the split leave-one-out: the dataset that is the test part


@dataclass(frozen=True)
class Built:
    """A finished folder; ``fresh`` is False where it was there already, made from the same request."""

    dataset: Dataset
    warnings: list[str]
    fresh: bool


def build(source: Path, out: Path, recipe: Recipe, options: Options, *, workers: int, progress: Progress) -> Built:
    """Build ``out`` from ``source``; it is complete or as it was before, however this process ends.

    The same source, recipe and options give the same bytes. :class:`UserError` on every fault of the input.
    """
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--out {out} lies inside --source {source}; name a folder outside it")
    with worker_pool(workers) as run:  # the processes start while the files are listed
        records, warnings = find_records(recipe, source)
        request = _request(recipe, options, records, source)
        if out.exists() and (found := _finished(out, request)) is not None:
            return Built(found, warnings, fresh=False)
        try:
            with partial_folder(out) as folder:
                _fill(folder, records, source, recipe, options, request, run, progress)
        except BrokenProcessPool:
            raise UserError("a worker process was killed (out of memory?); build with fewer --workers") from None
        except OSError as error:
            raise UserError(f"--out {out} cannot be written ({error.strerror or error})") from None
    dataset = open_dataset(out)
    return Built(dataset, warnings + _thin_splits(dataset), fresh=True)


def _thin_splits(dataset: Dataset) -> list[str]:
    """Warnings of classes that a split lacks though it was asked for: they have too few groups."""
    counts, about = dataset.manifest["counts"], dataset.manifest["split"]
    asked = [1.0] * len(counts) if dataset.folds else about["fractions"]
    held = "test" if about["method"] == "leave-one-out" else None  # that part is a dataset, with the classes it has
    return [
        f"{name} has no images in {split_name}: "
        + (f"what {about['test_on']} leaves of it is" if held else "it has")
        + " too few groups (patients, or sets of copies) to divide"
        for name in dataset.classes
        if any(by_class[name] for by_class in counts.values())
        for split_name, fraction in zip(counts, asked, strict=True)
        if fraction > 0 and split_name != held and not counts[split_name][name]
    ]


def _request(recipe: Recipe, options: Options, records: list[Record], source: Path) -> dict[str, Any]:
    """The part of the manifest that says what was asked for: equal requests give equal folders."""
    listing = hashlib.sha256()
    for name, slices in groupby(records, key=lambda record: record.path):
        path = source / name
        try:
            size = path.stat().st_size if path.is_file() else -1
        except OSError:
            size = -1
        listing.update(os.fsencode(name) + f"\0{size}\n".encode())
        for record in slices:  # tables and headers may change while no size does
            told = (record.frame, record.label, record.patient, record.published, record.attributes)
            listing.update(f"{json.dumps(told, sort_keys=True)}\n".encode())
    return {
        "name": recipe.name or source_name(source),
        "title": recipe.title,
        "source": recipe.source,
        "licence": recipe.licence,
        "citation": recipe.citation,
        # through JSON: what a manifest gives back must compare equal
        "recipe": json.loads(json.dumps(asdict(recipe))),
        "options": json.loads(json.dumps(asdict(options))),
        "source_listing_sha256": listing.hexdigest(),
    }


def _finished(out: Path, request: dict[str, Any]) -> Dataset | None:
    """The dataset in ``out`` if it was made from ``request``; None for an empty folder; UserError otherwise."""
    if out.is_dir() and not any(out.iterdir()):
        return None
    if not (out / MANIFEST).is_file():
        raise UserError(f"--out {out} exists and is no finished shard folder; name another one or remove it")
    dataset = open_dataset(out)
    mend = "name another --out or remove it"
    for key, meaning in (("name", "recipe"), ("recipe", "recipe"), ("source_listing_sha256", "list of source files")):
        if dataset.manifest.get(key) != request[key]:
            raise UserError(f"--out {out} holds shards built from another {meaning}; {mend}")
    before = dataset.manifest.get("options", {})
    for key, value in request["options"].items():
        if before.get(key) != value:
            flag = key.replace("_", "-")
            raise UserError(f"--out {out} was built with --{flag} {before.get(key)}, now {value} is asked for; {mend}")
    return dataset


def _fill(folder: Path, records: list[Record], source: Path, recipe: Recipe, options: Options, request: dict[str, Any],
          run: Run, progress: Progress) -> None:  # fmt: skip
    """Write shards, index and, last, the manifest into ``folder``."""
    spool = folder / "spool"  # new encodings wait here for their shard, so that nothing is decoded twice
    spool.mkdir()
    # The index's library takes half a second to load: it does while the workers decode. No daemon: a process that ends
    # in the middle of an import may crash.
    Thread(target=import_module, args=("pyarrow.parquet",)).start()
    records, images, thumbs, skipped = examine_all(
        records, source, recipe, run, skip_bad=options.skip_bad, progress=partial(progress, "decoding"), spool=spool,
        max_side=options.max_side,
    )  # fmt: skip
    patients = [(record.dataset, record.patient) for record in records]
    findings = search.find_copies(
        thumbs,
        [image.pixel_hash for image in images],
        patients,
        progress=partial(progress, "comparing"),
    )
    labels = np.array([record.label for record in records])
    chosen = _split(records, findings.groups, labels, recipe.classes, options)
    splits = chosen.codes
    rows = [
        _row(record, image, group=records[root].key, split_name=chosen.names[code] if code >= 0 else "")
        for record, image, root, code in zip(records, images, findings.groups, splits, strict=True)
    ]

    shards = _plan(rows, records, images, chosen, source, spool, recipe, options, request["name"])
    entries, table = [], []
    for shard, (entry, offsets) in zip(shards, run(partial(write_shard, folder=folder), shards, 1), strict=True):
        entries.append(entry)
        for sample, offset in zip(shard.samples, offsets, strict=True):
            table.append(rows[sample.row] | {"shard": shard.name, "offset": offset})
        progress("writing shards", len(entries), len(shards))
    for path in spool.iterdir():
        path.unlink()
    spool.rmdir()

    data = index_bytes(table)
    write_durably(folder / INDEX, data)
    manifest = {
        "format": FORMAT,
        "name": request["name"],
        "classes": list(recipe.classes),
        "counts": {
            name: {kind: int(((splits == code) & (labels == label)).sum()) for label, kind in enumerate(recipe.classes)}
            for code, name in enumerate(chosen.names)
        },
        "samples": len(table),
        "groups": len(np.unique(findings.groups[splits >= 0])),
        **request,
        "split": chosen.about,
        "excluded": _excluded(records, splits, recipe.classes),
        "audit": search.counts(findings, labels, patients, splits),
        "skipped": skipped,
        "shards": entries,
        "index_sha256": hashlib.sha256(data).hexdigest(),
        "builder": __version__,
    }
    write_durably(folder / MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())


def _split(records: list[Record], groups: np.ndarray, labels: np.ndarray, classes: tuple[str, ...],
           options: Options) -> split.Split:  # fmt: skip
    published = options.folds == "published"
    return split.choose(
        options.split,
        groups,
        labels,
        [record.dataset for record in records],
        classes,
        published=[record.published for record in records],
        folds=[record.attributes.get("fold") for record in records] if published else int(options.folds or 0),
        test_on=options.test_on,
        fractions=options.fractions,
        seed=options.seed,
    )


def _excluded(records: list[Record], splits: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    """The manifest's entry for images that are in no shard because their group touches the dataset tested on."""
    left = [records[row] for row in np.flatnonzero(splits < 0)]
    counts: dict[str, dict[str, int]] = {}
    for record in left:
        by_class = counts.setdefault(record.dataset, dict.fromkeys(classes, 0))
        by_class[classes[record.label]] += 1
    return {"samples": len(left), "counts": counts, "keys": [record.key for record in left]}


def _row(record: Record, image: Examined, group: str, split_name: str) -> dict[str, Any]:
    """A row of the index but for shard and offset."""
    x, y, width, height = image.head
    return {
        "key": record.key, "size": image.size, "crc32": image.crc32, "label": record.label, "dataset": record.dataset,
        "split": split_name, "group": group, "patient": record.patient, "width": image.width, "height": image.height,
        "mode": image.mode, "pixel_hash": image.pixel_hash, "phash": image.phash, "source": printable(record.path),
        "head_x": x, "head_y": y, "head_w": width, "head_h": height,
        "attributes": json.dumps(record.attributes, sort_keys=True, separators=(",", ":")),
    }  # fmt: skip


def _plan(rows: list[dict[str, Any]], records: list[Record], images: list[Examined], chosen: split.Split, source: Path,
          spool: Path, recipe: Recipe, options: Options, name: str) -> list[Shard]:  # fmt: skip
    """Shuffle each split, so that every shard mixes the classes, and cut it into shards; in order of their names."""
    shards = []
    for code, split_name in enumerate(chosen.names):
        members = np.flatnonzero(chosen.codes == code)
        order = members[np.random.default_rng([options.seed, 2, code]).permutation(len(members))].tolist()
        numbers = cut([images[row].size for row in order], options.shard_size)
        samples: list[list[Sample]] = [[] for _ in range(max(numbers, default=-1) + 1)]
        for row, number in zip(order, numbers, strict=True):
            about = {key: rows[row][key] for key in ("dataset", "patient", "group", "source", "split")}
            about["class"] = recipe.classes[rows[row]["label"]]
            image = images[row]
            file = source / records[row].path if image.payload is None else spool / records[row].key
            text = json.dumps(about, sort_keys=True, separators=(",", ":"))
            samples[number].append(
                Sample(row, records[row].key, image.ext, file, image.size, image.crc32, rows[row]["label"], text)
            )
        shards += [Shard(f"{name}-{split_name}-{number:05d}.tar", part) for number, part in enumerate(samples)]
    return sorted(shards, key=lambda shard: shard.name)
