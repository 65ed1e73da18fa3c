"""Compare one shard with its entry in the manifest, its rows of the index and its .idx file."""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from brain_dist.common.files import sha256_file
from brain_dist.store.crosscheck import SHOWN
from brain_dist.store.manifest import ShardEntry
from brain_dist.store.tar import idx_text

Row = dict[str, Any]  # a row of the index, with the class's name


class ShardJob(NamedTuple):
    """A shard to check: its entry in the manifest and its index rows; None if the index is damaged."""

    entry: ShardEntry
    rows: list[Row] | None


def idx_name(shard: str) -> str:
    """File name of a shard's .idx."""
    return str(Path(shard).with_suffix(".idx"))


def shard_problems(job: ShardJob, root: Path) -> list[str]:
    """Problems of a shard and its .idx, one line each; at most :data:`SHOWN` and their number."""
    entry, rows = job
    name, problems = entry.name, []
    path = root / name
    try:
        size = path.stat().st_size
        if size != entry.size:
            problems.append(f"{name}: {size} bytes, the manifest says {entry.size}")
        if sha256_file(path) != entry.sha256:
            problems.append(f"{name}: the bytes are not those that were built (sha256 differs)")
        if rows is not None:
            problems += _member_problems(path, rows)
    except OSError as error:
        problems.append(f"{name}: cannot be read ({error.strerror})")
    if len(problems) > SHOWN:
        problems = [*problems[:SHOWN], f"{name}: {len(problems) - SHOWN} more problems"]
    return problems


def _member_problems(path: Path, rows: list[Row]) -> list[str]:
    """Compare the members of a tar, in order, with the index rows, and with the .idx if there is one."""
    problems, lines, name = [], [], path.name
    try:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
    except OSError:
        raise
    except Exception as error:  # a damaged header can raise anything
        return [f"{name}: not a complete tar ({error})"]
    if len(members) != 3 * len(rows):
        problems.append(f"{name}: {len(members)} members, {3 * len(rows)} expected for {len(rows)} samples")
    with path.open("rb") as file:
        for row, start in zip(rows, range(0, len(members) - 2, 3), strict=False):
            line, found = _sample_problems(file, members[start : start + 3], row)
            problems += [f"{name}: sample {row['key']}: {problem}" for problem in found]
            lines.append(line)
    return problems + _idx_problems(path, lines)


def _idx_problems(shard: Path, lines: list[str]) -> list[str]:
    idx = shard.with_suffix(".idx")
    try:
        if idx.read_bytes() != idx_text(lines).encode():
            return [f"{idx.name}: does not describe {shard.name}; build again"]
    except FileNotFoundError:
        pass  # the caller reports missing files
    except OSError as error:
        return [f"{idx.name}: cannot be read ({error.strerror})"]
    return []


def _sample_problems(file: BinaryIO, members: list[tarfile.TarInfo], row: Row) -> tuple[str, list[str]]:
    """The line of the .idx for a sample's three members, and the sample's problems."""
    key, names = row["key"], [member.name for member in members]
    if names not in ([f"{key}.{extension}", f"{key}.cls", f"{key}.json"] for extension in ("jpg", "png")):
        return "", [f"found {', '.join(map(ascii, names))} instead"]
    end = os.fstat(file.fileno()).st_size  # a damaged header may state any size
    image, label, metadata = (
        os.pread(file.fileno(), max(0, min(member.size, end - member.offset_data)), member.offset_data)
        for member in members
    )
    line = " ".join(f"{m.name.removeprefix(key + '.')} {m.offset_data} {m.size} {m.name}" for m in members)
    problems, offset, size = [], members[0].offset_data, members[0].size
    if (offset, size) != (row["offset"], row["size"]):
        problems.append(f"{size} bytes at {offset}, in the index {row['size']} at {row['offset']}")
    if zlib.crc32(image) != row["crc32"]:
        problems.append("the image's bytes are damaged (crc32 differs)")
    if label != str(row["label"]).encode():
        problems.append(f".cls is {label[:20]!r}, in the index {row['label']}")
    return line, problems + _metadata_problems(metadata, row)


def _metadata_problems(data: bytes, row: Row) -> list[str]:
    """Problems of the .json member."""
    try:
        metadata = json.loads(data)
    except (ValueError, RecursionError):
        return [".json cannot be parsed"]
    keys = ("dataset", "class", "patient", "group", "source", "split")
    differing = [key for key in keys if not isinstance(metadata, dict) or metadata.get(key) != row[key]]
    return [f".json and the index differ in {', '.join(differing)}"] if differing else []
