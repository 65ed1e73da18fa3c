"""Read a shard folder again and compare everything with everything: manifest, index, tars, .idx files, members."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from brain_dist.common.files import sha256_file
from brain_dist.common.workers import worker_pool
from brain_dist.errors import UserError
from brain_dist.store.crosscheck import SHOWN, Columns, said_twice, shape, tables
from brain_dist.store.dataset import open_dataset
from brain_dist.store.index import INDEX, read_columns
from brain_dist.store.manifest import load_manifest
from brain_dist.store.tar import idx_text


def verify(root: Path, *, workers: int = 1, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """All that is wrong with the shard folder ``root``, one line each; empty where nothing is.

    Every byte of shards and index is compared with the checksums in the manifest, every sample with its row of the
    index and with the .idx, the manifest's counts with the index, and what the manifest says twice with itself. The
    sources of a joined folder are verified, and its rows compared with theirs. A folder without any .idx file (a
    staged copy) lacks none. Files that no reader opens (neither .tar nor .idx) are nobody's concern.

    What nothing else tells is trusted, as the dataset version covers it: where the data come from (title, source,
    licence, citation and recipe, if all agree), options that the split does not repeat, how many near copies there
    are, how far shares are off, what was skipped or excluded, the builder; and of the index whatever needs decoding
    (widths, hashes, heads).

    :class:`UserError` where there is no manifest or index to compare with.
    """
    manifest = load_manifest(root)[0]
    problems = shape(manifest)
    if problems:
        return problems
    problems = said_twice(manifest)
    try:
        data = (root / INDEX).read_bytes()
    except OSError as error:
        raise UserError(f"{root / INDEX} cannot be read ({error.strerror}); build the shard folder again") from None
    columns = None  # damaged Parquet is not parsed: there is no telling what that does
    if hashlib.sha256(data).hexdigest() != manifest["index_sha256"]:
        problems.append(f"{INDEX}: not the index the manifest describes (sha256 differs)")
    else:
        try:
            columns = read_columns(data)
        except UserError as error:
            problems.append(str(error))
        except Exception as error:  # Arrow has many
            problems.append(f"{INDEX}: cannot be read ({error})")
    if columns is not None:
        problems += tables(manifest, columns)
    if "sources" in manifest:
        return problems + _joined(root, columns, workers, progress)
    return problems + _shards(root, manifest, columns, workers, progress)


def _shards(root: Path, manifest: dict[str, Any], columns: Columns | None, workers: int,
            progress: Callable[[int, int], None] | None) -> list[str]:  # fmt: skip
    """Problems of the files of shards, which are compared with the manifest alone where there are no ``columns``."""
    names = {entry["name"] for entry in manifest["shards"]}
    with os.scandir(root) as entries:
        there = {entry.name for entry in entries if entry.name.endswith((".tar", ".idx"))}
    staged = not any(name.endswith(".idx") for name in there)
    expected = names if staged else names | {_idx(name) for name in names}
    problems = [f"{name}: missing" for name in sorted(expected - there)]
    problems += [f"{name}: not in the manifest" for name in sorted(there - expected)]
    jobs = [
        (entry, None if columns is None else _rows_of(columns, entry["name"], manifest["classes"]))
        for entry in manifest["shards"]
        if entry["name"] in there
    ]
    with worker_pool(workers) as run:
        for done, found in enumerate(run(partial(_shard, root=root), jobs, 1), 1):
            problems += found
            if progress is not None:
                progress(done, len(jobs))
    return problems


def _joined(root: Path, columns: Columns | None, workers: int,
            progress: Callable[[int, int], None] | None) -> list[str]:  # fmt: skip
    """Problems of the folders that ``root`` joins, and rows that are not theirs."""
    try:
        sources = open_dataset(root).sources
    except UserError as error:
        return [] if columns is None else [str(error)]  # without columns the index's damage was told already
    problems = []
    theirs: dict[tuple[str, int], tuple[int, int]] = {}
    for number, source in enumerate(sources):
        try:
            problems += [f"{source}: {problem}" for problem in verify(source, workers=workers, progress=progress)]
            found = open_dataset(source).columns
        except UserError as error:
            problems.append(str(error))
            continue
        theirs |= {(f"{number}/{shard}", offset): image for (shard, offset), image in _images(found).items()}
    for place, image in _images(columns or {}).items():
        if not problems and theirs.get(place) != image:
            problems.append(f"{INDEX}: the image at byte {place[1]} of {place[0]} is not its source's")
    return problems


def _images(columns: Columns) -> dict[tuple[str, int], tuple[int, int]]:
    """(shard, offset) → (size, crc32) of every row."""
    shard, *numbers = (columns[name].tolist() for name in ("shard", "offset", "size", "crc32"))
    return {(name, offset): (size, crc) for name, offset, size, crc in zip(shard, *numbers, strict=True)}


def _idx(name: str) -> str:
    return str(Path(name).with_suffix(".idx"))


def _rows_of(columns: Columns, shard: str, classes: list[str]) -> list[dict[str, Any]]:
    names = ("key", "offset", "size", "crc32", "label", "dataset", "patient", "group", "source", "split")
    rows = []
    for row in np.flatnonzero(columns["shard"] == shard):
        entry = {name: columns[name][row] for name in names}
        label = int(entry["label"])
        rows.append(entry | {"class": classes[label] if 0 <= label < len(classes) else None})
    return rows


def _shard(job: tuple[dict[str, Any], list[dict[str, Any]] | None], root: Path) -> list[str]:
    """Problems of one shard and its .idx."""
    entry, rows = job
    name, problems = entry["name"], []
    path = root / name
    try:
        if path.stat().st_size != entry["size"]:
            problems.append(f"{name}: {path.stat().st_size} bytes, the manifest says {entry['size']}")
        if sha256_file(path) != entry["sha256"]:
            problems.append(f"{name}: the bytes are not what was built (sha256 differs)")
        if rows is not None:
            problems += _members(path, rows)
    except OSError as error:
        problems.append(f"{name}: cannot be read ({error.strerror})")
    if len(problems) > SHOWN:
        problems = [*problems[:SHOWN], f"{name}: {len(problems) - SHOWN} more problems"]
    return problems


def _members(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Compare a tar's members, one after the other, with the index rows, and with the .idx where there is one."""
    problems, lines, name = [], [], path.name
    try:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
    except OSError:
        raise
    except Exception as error:  # tarfile lets through whatever a broken header raises
        return [f"{name}: not a complete tar ({error})"]
    if len(members) != 3 * len(rows):
        problems.append(f"{name}: {len(members)} members, {3 * len(rows)} expected for {len(rows)} samples")
    with path.open("rb") as file:
        for row, number in zip(rows, range(0, len(members) - 2, 3), strict=False):
            line, found = _sample(file, members[number : number + 3], row)
            problems += [f"{name}: sample {row['key']}: {problem}" for problem in found]
            lines.append(line)
    idx = path.with_suffix(".idx")
    try:
        if idx.read_bytes() != idx_text(lines).encode():
            problems.append(f"{idx.name}: does not describe {name}; build again")
    except FileNotFoundError:
        pass  # the caller says which ones are missing
    except OSError as error:
        problems.append(f"{idx.name}: cannot be read ({error.strerror})")
    return problems


def _sample(file: BinaryIO, members: list[tarfile.TarInfo], row: dict[str, Any]) -> tuple[str, list[str]]:
    """(its line of the .idx, its problems) of a sample's three members."""
    key, names = row["key"], [member.name for member in members]
    if names not in ([f"{key}.{ext}", f"{key}.cls", f"{key}.json"] for ext in ("jpg", "png")):
        return "", [f"its place holds {', '.join(map(ascii, names))}"]
    end = os.fstat(file.fileno()).st_size  # a broken header may claim any size
    data = [os.pread(file.fileno(), max(0, min(m.size, end - m.offset_data)), m.offset_data) for m in members]
    line = " ".join(f"{m.name.removeprefix(key + '.')} {m.offset_data} {m.size} {m.name}" for m in members)
    problems, image = [], members[0]
    if (image.offset_data, image.size) != (row["offset"], row["size"]):
        problems.append(f"{image.size} bytes at {image.offset_data}, in the index {row['size']} at {row['offset']}")
    if zlib.crc32(data[0]) != row["crc32"]:
        problems.append("the image's bytes are damaged (crc32 differs)")
    if data[1] != str(row["label"]).encode():
        problems.append(f".cls says {data[1][:20]!r}, the index {row['label']}")
    try:
        said = json.loads(data[2])
    except (ValueError, RecursionError):
        return line, [*problems, ".json cannot be parsed"]
    told = ("dataset", "class", "patient", "group", "source", "split")
    differing = [name for name in told if not isinstance(said, dict) or said.get(name) != row[name]]
    if differing:
        problems.append(f".json and the index differ in {', '.join(differing)}")
    return line, problems
