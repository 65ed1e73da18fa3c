"""Read a shard folder and compare manifest, index, tars, .idx files and members with each other."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np

from brain_dist.common.files import sha256_bytes
from brain_dist.common.progress import Progress, no_progress
from brain_dist.common.workers import worker_pool
from brain_dist.errors import UserError
from brain_dist.store.crosscheck import Columns, contradictions, index_problems, missing_entries
from brain_dist.store.dataset import open_dataset
from brain_dist.store.index import INDEX, read_columns
from brain_dist.store.manifest import JoinedManifest, Manifest, load_manifest
from brain_dist.store.verify_shard import Row, ShardJob, idx_name, shard_problems


def verify(root: Path, *, workers: int = 1, progress: Progress = no_progress) -> list[str]:
    """Find everything that is wrong with a shard folder.

    Compares every byte of shards and index with the checksums in the manifest, every sample with its row of the index
    and with the .idx, the manifest's counts with the index, and values that the manifest states twice. The sources of a
    joined folder are verified, and its rows compared with theirs. A folder without any .idx file (a staged copy) is
    complete. Files that no reader opens (neither .tar nor .idx) are ignored.

    Some entries cannot be checked against anything and are trusted, as the dataset version covers them. In the
    manifest: the origin of the data (title, source, licence, citation and recipe, if all agree), options that the split
    does not repeat, the number of near copies, the deviation of shares, what was skipped or excluded, the builder. In
    the index: values that come from decoding (widths, hashes, heads).

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


def _built_problems(
    root: Path, manifest: Manifest, columns: Columns | None, workers: int, progress: Progress
) -> list[str]:
    """Problems of the shard files; without ``columns`` they are only compared with the manifest."""
    names = {entry.name for entry in manifest.shards}
    with os.scandir(root) as entries:
        existing = {entry.name for entry in entries if entry.name.endswith((".tar", ".idx"))}
    is_staged = not any(name.endswith(".idx") for name in existing)
    expected = names if is_staged else names | {idx_name(name) for name in names}
    problems = [f"{name}: missing" for name in sorted(expected - existing)]
    problems += [f"{name}: not in the manifest" for name in sorted(existing - expected)]
    jobs = [
        ShardJob(entry, None if columns is None else _rows_of(columns, entry.name, manifest.classes))
        for entry in manifest.shards
        if entry.name in existing
    ]
    with worker_pool(workers) as run:
        for done, found in enumerate(run(partial(shard_problems, root=root), jobs, 1), 1):
            problems += found
            progress("reading", done, len(jobs))
    return problems


def _rows_of(columns: Columns, shard: str, classes: list[str]) -> list[Row]:
    """The index rows of a shard, with the class's name (None if the label is outside the classes)."""
    names = ("key", "offset", "size", "crc32", "label", "dataset", "patient", "group", "source", "split")
    rows = []
    for number in np.flatnonzero(columns["shard"] == shard):
        row = {name: columns[name][number] for name in names}
        label = int(row["label"])
        rows.append(row | {"class": classes[label] if 0 <= label < len(classes) else None})
    return rows


def _joined_problems(root: Path, columns: Columns | None, workers: int, progress: Progress) -> list[str]:
    """Problems of the folders that ``root`` joins, and rows that differ from theirs."""
    try:
        sources = open_dataset(root).sources
    except UserError as error:
        return [] if columns is None else [str(error)]  # a damaged index is reported already
    problems = []
    source_images: dict[tuple[str, int], tuple[int, int]] = {}
    for number, source in enumerate(sources):
        try:
            problems += [f"{source}: {problem}" for problem in verify(source, workers=workers, progress=progress)]
            images = _image_table(open_dataset(source).columns)
        except UserError as error:
            problems.append(str(error))
            continue
        source_images |= {(f"{number}/{shard}", offset): image for (shard, offset), image in images.items()}
    if problems or columns is None:
        return problems
    return [
        f"{INDEX}: the image at byte {offset} of {shard} is not the image of its source"
        for (shard, offset), image in _image_table(columns).items()
        if source_images.get((shard, offset)) != image
    ]


def _image_table(columns: Columns) -> dict[tuple[str, int], tuple[int, int]]:
    """(shard, offset) → (size, crc32) of every row."""
    shard, *numbers = (columns[name].tolist() for name in ("shard", "offset", "size", "crc32"))
    return {(name, offset): (size, crc) for name, offset, size, crc in zip(shard, *numbers, strict=True)}
