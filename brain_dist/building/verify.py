"""Read a shard folder and compare manifest, index, tars, .idx files and members with each other."""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from brain_dist.building.crosscheck import SHOWN, Columns, contradictions, index_problems, missing_entries
from brain_dist.building.tar import idx_text
from brain_dist.collection.decoding import BadImage, encoded_size
from brain_dist.collection.masks import mask_attributes, read_mask
from brain_dist.collection.pixels import examine
from brain_dist.common.files import sha256_bytes, sha256_file
from brain_dist.common.progress import Progress, no_progress
from brain_dist.common.workers import worker_pool
from brain_dist.errors import Fault, UserError
from brain_dist.store.dataset import open_dataset
from brain_dist.store.index import COLUMNS, INDEX, read_columns
from brain_dist.store.lesions import MASKS, read_masks
from brain_dist.store.manifest import BuiltManifest, JoinedManifest, Manifest, ShardEntry, load_manifest

_MEASURED = ("width", "height", "pixel_hash", "phash", "head_x", "head_y", "head_w", "head_h")
_JOINED = ("shard", "offset", "key", "group", "split", "label")  # columns that a joined folder has of its own
_Job = tuple[ShardEntry, "list[dict[str, Any]] | None"]  # a shard and its rows; None if the index is damaged


def verify(root: Path, *, workers: int = 1, progress: Progress = no_progress) -> list[str]:
    """Find everything that is wrong with a shard folder.

    Compares every byte of shards and index with the checksums in the manifest, every sample with its row of the index
    and with the .idx, the manifest's counts with the index, and values that the manifest states twice. Every image is
    decoded and measured, unless its size is not that of its row. Masks are compared with the boxes and areas in the
    index. The sources of a joined folder are verified, and its
    rows compared with theirs. A folder without any .idx file (a staged copy) is complete. Files that no reader opens
    (neither .tar nor .idx) are ignored.

    Some entries cannot be checked against anything and are trusted, as the dataset version covers them. In the
    manifest: the origin of the data (title, source, licence, citation and recipe, if all agree), options that the split
    does not repeat, the number of near copies, the deviation of shares, what was skipped or excluded, the builder. In
    the index: the mode of the source file, and the attributes other than boxes and areas of masks.

    Returns:
        One line per problem.

    Raises:
        UserError: the manifest is missing or malformed, or the index is missing.
    """
    manifest = load_manifest(root)[0]
    problems = missing_entries(manifest)
    if problems:
        return problems
    columns, index_faults = _read_index(root, manifest)
    problems = contradictions(manifest) + index_faults
    if columns is not None:
        problems += index_problems(manifest, columns)
    if isinstance(manifest, JoinedManifest):
        return problems + _joined_problems(root, columns, workers, progress)
    return problems + _built_problems(root, manifest, columns, workers, progress)


def _read_index(root: Path, manifest: Manifest) -> tuple[Columns | None, list[str]]:
    """The index's columns (None if it is damaged) and its problems."""
    try:
        data = (root / INDEX).read_bytes()
    except OSError as error:
        raise UserError(f"{root / INDEX} cannot be read ({error.strerror}); build the shard folder again") from None
    if sha256_bytes(data) != manifest.index_sha256:  # damaged Parquet is not parsed, which could crash
        return None, [f"{INDEX}: not the index that the manifest describes (sha256 differs)"]
    try:
        return read_columns(data), []
    except UserError as error:
        return None, [str(error)]
    except Exception as error:  # Arrow has many
        return None, [f"{INDEX}: cannot be read ({error})"]


def _joined_problems(root: Path, columns: Columns | None, workers: int, progress: Progress) -> list[str]:
    """Problems of the folders that ``root`` joins, and rows that differ from theirs."""
    try:
        sources = open_dataset(root).sources
    except UserError as error:
        return [] if columns is None else [str(error)]  # a damaged index is reported already
    problems = []
    images: set[tuple[Any, ...]] = set()
    for number, source in enumerate(sources):
        try:
            problems += [f"{source}: {problem}" for problem in verify(source, workers=workers, progress=progress)]
            images |= {(f"{number}/{shard}", *rest) for shard, *rest in _images(open_dataset(source).columns)}
        except UserError as error:
            problems.append(str(error))
    if problems or columns is None:
        return problems
    return [
        f"{INDEX}: the image at byte {image[1]} of {image[0]} is not the image of its source"
        for image in _images(columns)
        if image not in images
    ]


def _images(columns: Columns) -> list[tuple[Any, ...]]:
    """What a join does not change of every row: shard, offset and all columns that describe the image."""
    names = ["shard", "offset", *(name for name in COLUMNS if name not in _JOINED)]
    return list(zip(*(columns[name].tolist() for name in names), strict=True))


def _built_problems(
    root: Path, manifest: Manifest, columns: Columns | None, workers: int, progress: Progress
) -> list[str]:
    """Problems of the shard files; without ``columns`` they are only compared with the manifest."""
    names = {entry.name for entry in manifest.shards}
    with os.scandir(root) as entries:
        existing = {entry.name for entry in entries if entry.name.endswith((".tar", ".idx"))}
    is_staged = not any(name.endswith(".idx") for name in existing)
    expected = names if is_staged else names | {str(Path(name).with_suffix(".idx")) for name in names}
    problems = [f"{name}: missing" for name in sorted(expected - existing)]
    problems += [f"{name}: not in the manifest" for name in sorted(existing - expected)]
    jobs: list[_Job] = [
        (entry, None if columns is None else _rows_of(columns, entry.name, manifest.classes))
        for entry in manifest.shards
        if entry.name in existing
    ]
    with worker_pool(workers) as run:
        for done, found in enumerate(run(partial(_shard_problems, root=root), jobs, 1), 1):
            problems += found
            progress("reading", done, len(jobs))
    return problems + _mask_problems(root, manifest, columns)


def _mask_problems(root: Path, manifest: Manifest, columns: Columns | None) -> list[str]:
    """Problems of the masks; without ``columns`` they are only compared with the manifest."""
    entry = manifest.masks if isinstance(manifest, BuiltManifest) else None
    try:
        masks = {} if entry is None else read_masks(root, entry)
    except Fault as error:
        return [f"{MASKS}: {str(error).partition(': ')[2]}"]
    problems = []
    if entry is not None and (entry.name, entry.samples) != (MASKS, len(masks)):
        problems.append(f"{MASKS}: {len(masks)} masks, the manifest says {entry.samples} in {entry.name!a}")
    if columns is None:
        return problems
    rows = {key: row for row, key in enumerate(columns["key"])}
    attributes = [json.loads(text) for text in columns["attributes"]]
    expected = {key for key, row in rows.items() if "lesion_area" in attributes[row]}
    problems += [f"{MASKS}: no mask of {key}" for key in sorted(expected - masks.keys())[:SHOWN]]
    for key, png in masks.items():
        if key not in expected:
            problems.append(f"{MASKS}: a mask of {key}, which has none by the {INDEX}")
            continue
        row = rows[key]
        try:
            mask = read_mask(png)
        except BadImage as error:
            problems.append(f"{MASKS}: the mask of {key} {error}")
            continue
        if mask.shape != (columns["height"][row], columns["width"][row]):
            problems.append(f"{MASKS}: the mask of {key} has another size than its image")
        elif any(attributes[row].get(name) != value for name, value in mask_attributes(mask).items()):
            problems.append(f"{INDEX}: boxes or lesion_area of {key} are not those of its mask")
    return problems


def _rows_of(columns: Columns, shard: str, classes: list[str]) -> list[dict[str, Any]]:
    """The index rows of a shard, with the class's name (None if the label is outside the classes)."""
    names = ("key", "offset", "size", "crc32", "label", "dataset", "patient", "group", "source", "split", *_MEASURED)
    class_of = dict(enumerate(classes))
    return [
        {name: columns[name][row] for name in names} | {"class": class_of.get(columns["label"][row])}
        for row in np.flatnonzero(columns["shard"] == shard)
    ]


def _shard_problems(job: _Job, root: Path) -> list[str]:
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


def _member_problems(path: Path, rows: list[dict[str, Any]]) -> list[str]:
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
    idx = path.with_suffix(".idx")
    try:
        if idx.read_bytes() != idx_text(lines).encode():
            problems.append(f"{idx.name}: does not describe {name}; build again")
    except FileNotFoundError:
        pass  # the caller reports missing files
    except OSError as error:
        problems.append(f"{idx.name}: cannot be read ({error.strerror})")
    return problems


def _sample_problems(file: BinaryIO, members: list[tarfile.TarInfo], row: dict[str, Any]) -> tuple[str, list[str]]:
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
    else:
        problems += _image_problems(image, row)
    if label != str(row["label"]).encode():
        problems.append(f".cls is {label[:20]!r}, in the index {row['label']}")
    return line, problems + _metadata_problems(metadata, row)


def _image_problems(data: bytes, row: dict[str, Any]) -> list[str]:
    """Differences between an encoded image and what the index says was measured on it."""
    try:
        width, height = encoded_size(data)
        if (width, height) != (row["width"], row["height"]):  # what is decoded may be large
            return [f"the image is {width} x {height} pixels, in the index {row['width']} x {row['height']}"]
        image = examine(data)
    except BadImage as error:
        return [f"the image {error}"]
    measured = dict(zip(_MEASURED, (width, height, image.pixel_hash, image.phash, *image.head), strict=True))
    differing = [name for name in _MEASURED if measured[name] != row[name]]
    return [f"the image and the index differ in {', '.join(differing)}"] if differing else []


def _metadata_problems(data: bytes, row: dict[str, Any]) -> list[str]:
    """Problems of the .json member."""
    try:
        metadata = json.loads(data)
    except (ValueError, RecursionError):
        return [".json cannot be parsed"]
    keys = ("dataset", "class", "patient", "group", "source", "split")
    differing = [key for key in keys if not isinstance(metadata, dict) or metadata.get(key) != row[key]]
    return [f".json and the index differ in {', '.join(differing)}"] if differing else []
