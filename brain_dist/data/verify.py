"""Read a shard folder again and compare everything with everything: manifest, index, tars, .idx files, members."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist.data import index
from brain_dist.data.pool import worker_pool
from brain_dist.data.tarshard import idx_text, sha256_file
from brain_dist.errors import UserError

_SHOWN = 20  # problems listed for one shard; a shard cut short would give one for every sample


def verify(root: Path, *, workers: int = 1, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """All that is wrong with the shard folder ``root``, one line each; empty where nothing is.

    :class:`UserError` where there is no manifest or index to compare with.
    """
    manifest = index.load_manifest(root)[0]
    problems = []
    try:
        data = (root / index.INDEX).read_bytes()
    except OSError as error:
        raise UserError(
            f"{root / index.INDEX} cannot be read ({error.strerror}); build the shard folder again"
        ) from None
    if hashlib.sha256(data).hexdigest() != manifest["index_sha256"]:
        problems.append(f"{index.INDEX}: not the index the manifest describes (sha256 differs)")
    try:
        columns = index.read_columns(data)
    except UserError as error:
        return [*problems, str(error)]
    problems += _tables(manifest, columns)
    names = [entry["name"] for entry in manifest["shards"]]
    expected = {file for name in names for file in (name, _idx(name))}
    with os.scandir(root) as entries:
        there = {entry.name for entry in entries}
    problems += [f"{name}: missing" for name in sorted(expected - there)]
    problems += [f"{name}: not in the manifest" for name in sorted(there - expected) if name.endswith((".tar", ".idx"))]
    jobs = [
        (entry, _rows_of(columns, entry["name"], manifest["classes"]))
        for entry in manifest["shards"]
        if {entry["name"], _idx(entry["name"])} <= there
    ]
    with worker_pool(workers) as run:
        for done, found in enumerate(run(partial(_shard, root=root), jobs, 1), 1):
            problems += found
            if progress is not None:
                progress(done, len(jobs))
    return problems


def _idx(name: str) -> str:
    return str(Path(name).with_suffix(".idx"))


def _tables(manifest: dict[str, Any], columns: dict[str, np.ndarray]) -> list[str]:
    """Does the index hold what the manifest counts, and is a group in one split only where that was promised?"""
    problems = []
    count, classes = len(columns["key"]), manifest["classes"]
    if count != manifest["samples"]:
        problems.append(f"{index.INDEX}: {count} rows, the manifest says {manifest['samples']}")
    doubled = [key for key, times in Counter(columns["key"]).items() if times > 1]
    problems += [f"{index.INDEX}: key {key} occurs more than once" for key in doubled[:_SHOWN]]
    outside = (columns["label"] < 0) | (columns["label"] >= len(classes))
    problems += [f"{index.INDEX}: label {columns['label'][row]} of {columns['key'][row]} is outside the classes"
                 for row in np.flatnonzero(outside)[:_SHOWN]]  # fmt: skip
    found = Counter(zip(columns["split"], columns["label"].tolist(), strict=True))
    for split, by_class in manifest["counts"].items():
        for label, name in enumerate(classes):
            if found[split, label] != by_class[name]:
                problems.append(
                    f"{index.INDEX}: {found[split, label]} {name} rows in {split}, the manifest says {by_class[name]}"
                )
    if len(set(columns["group"])) != manifest["groups"]:
        problems.append(f"{index.INDEX}: {len(set(columns['group']))} groups, the manifest says {manifest['groups']}")
    named = Counter(columns["shard"])
    for entry in manifest["shards"]:
        if named.pop(entry["name"], 0) != entry["samples"]:
            problems.append(f"{index.INDEX}: not {entry['samples']} rows in {entry['name']}, as the manifest says")
    problems += [f"{index.INDEX}: rows in {name}, which is not in the manifest" for name in sorted(named)]
    if manifest["split"]["method"] == "grouped":
        of_group: dict[str, str] = {}
        crossing = {group for group, split in zip(columns["group"], columns["split"], strict=True)
                    if of_group.setdefault(group, split) != split}  # fmt: skip
        problems += [f"{index.INDEX}: group {group} is in more than one split" for group in sorted(crossing)[:_SHOWN]]
    return problems


def _rows_of(columns: dict[str, np.ndarray], shard: str, classes: list[str]) -> list[dict[str, Any]]:
    names = ("key", "offset", "size", "crc32", "label", "dataset", "patient", "group", "source", "split")
    rows = []
    for row in np.flatnonzero(columns["shard"] == shard):
        entry = {name: columns[name][row] for name in names}
        label = int(entry["label"])
        rows.append(entry | {"class": classes[label] if 0 <= label < len(classes) else None})
    return rows


def _shard(job: tuple[dict[str, Any], list[dict[str, Any]]], root: Path) -> list[str]:
    """Problems of one shard and its .idx."""
    entry, rows = job
    name, problems = entry["name"], []
    path = root / name
    try:
        if path.stat().st_size != entry["size"]:
            problems.append(f"{name}: {path.stat().st_size} bytes, the manifest says {entry['size']}")
        if sha256_file(path) != entry["sha256"]:
            problems.append(f"{name}: the bytes are not what was built (sha256 differs)")
        problems += _members(path, rows)
    except OSError as error:
        problems.append(f"{name}: cannot be read ({error.strerror})")
    if len(problems) > _SHOWN:
        problems = [*problems[:_SHOWN], f"{name}: {len(problems) - _SHOWN} more problems"]
    return problems


def _members(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Compare a tar's members, one after the other, with the index rows, and with the .idx."""
    problems, lines, name = [], [], path.name
    try:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
    except tarfile.TarError as error:
        return [f"{name}: not a complete tar ({error})"]
    with path.open("rb") as file:

        def content(member: tarfile.TarInfo) -> bytes:
            return os.pread(file.fileno(), member.size, member.offset_data)

        if len(members) != 3 * len(rows):
            problems.append(f"{name}: {len(members)} members, {3 * len(rows)} expected for {len(rows)} samples")
        for row, number in zip(rows, range(0, len(members) - 2, 3), strict=False):
            image, label, about = members[number : number + 3]
            key, where = row["key"], f"{name}: sample {row['key']}"
            expected = [
                image.name if image.name in (f"{key}.jpg", f"{key}.png") else f"{key}.jpg",
                f"{key}.cls",
                f"{key}.json",
            ]
            if [member.name for member in (image, label, about)] != expected:
                problems.append(f"{where}: its place holds {image.name}, {label.name}, {about.name}")
                continue
            lines.append(
                " ".join(
                    f"{m.name.removeprefix(key + '.')} {m.offset_data} {m.size} {m.name}" for m in (image, label, about)
                )
            )
            if (image.offset_data, image.size) != (row["offset"], row["size"]):
                problems.append(
                    f"{where}: {image.size} bytes at {image.offset_data}, in the index {row['size']} at {row['offset']}"
                )
            if zlib.crc32(content(image)) != row["crc32"]:
                problems.append(f"{where}: the image's bytes are damaged (crc32 differs)")
            if content(label) != str(row["label"]).encode():
                problems.append(f"{where}: .cls says {content(label)[:20]!r}, the index {row['label']}")
            try:
                said = json.loads(content(about))
            except ValueError:
                problems.append(f"{where}: .json cannot be parsed")
                continue
            differing = [
                key for key in ("dataset", "class", "patient", "group", "source", "split") if said.get(key) != row[key]
            ]
            if differing:
                problems.append(f"{where}: .json and the index differ in {', '.join(differing)}")
    if path.with_suffix(".idx").read_bytes() != idx_text(lines).encode():
        problems.append(f"{path.with_suffix('.idx').name}: does not describe {name}; build again")
    return problems
