"""The data of a run, as its configuration names them: staged on this node, joined, one fold of them chosen."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.errors import UserError
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.store.manifest import MANIFEST, SOURCES, load_manifest, recorded_sources
from brain_dist.store.reader import shard_path
from brain_dist.store.stage import stage

if TYPE_CHECKING:
    from brain_dist.config import DataConfig

IMAGES_PER_WORKER = 256  # below that a process takes longer to start than its work takes


def open_data(data: DataConfig, where: Path) -> Dataset:
    """Open ``data.shards`` or the joined ``data.sources``, with the splits that ``data.fold`` makes.

    Every rank may call at the same time: what has to be copied or joined is done by one process while the others wait.
    A join is kept below ``where``, the folder of all runs, and found there by whoever asks for the same again.
    :class:`UserError` on data that are not there, do not fit together or do not fit the settings.
    """
    if data.sources:
        return _joined(data, where)
    if not data.shards:
        raise UserError(
            "data.shards is not set; give the folder that `python -m brain_dist.shard build` made,"
            " or several as data.sources"
        )
    return open_shards(data.shards, data.cache_dir).of_fold(data.fold)


def open_shards(shards: str, cache_dir: str | None) -> Dataset:
    """Open a built or joined folder, staged; its folds, if it has any, are not chosen yet."""
    if "://" not in shards and (Path(shards) / SOURCES).is_file():
        sources = [stage(source, cache_dir) for source in recorded_sources(Path(shards))]
        return open_dataset(shards, sources)
    return replace(open_dataset(stage(shards, cache_dir)), origin=_absolute(shards))


def check_shards(dataset: Dataset, rows: np.ndarray) -> None:
    """:class:`UserError` unless the shards of these ``rows`` are there in full length; reads none of them."""
    columns = dataset.columns
    names, where = np.unique(columns["shard"][rows], return_inverse=True)
    needed = np.zeros(len(names), np.int64)
    np.maximum.at(needed, where, (columns["offset"] + columns["size"])[rows])
    for name, least in zip(names, needed, strict=True):
        path = Path(shard_path(dataset.root, dataset.sources, name))
        mend = f"copy or build it again; `python -m brain_dist.shard verify {path.parent}` checks all"
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path} cannot be used ({error.strerror}); {mend}") from None
        if size < least:
            raise UserError(f"{path} has {size:,} bytes and needs {least:,}; {mend}")


def _joined(data: DataConfig, where: Path) -> Dataset:
    from brain_dist.store.join import join

    folders = [stage(source, data.cache_dir) for source in data.sources]
    manifests = [load_manifest(folder) for folder in folders]
    asked = json.dumps([[version for _, version in manifests], data.leave_out])
    out = where / f"joined-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"
    images = sum(manifest["samples"] for manifest, _ in manifests)
    workers = min(len(os.sched_getaffinity(0)), 1 + images // IMAGES_PER_WORKER)
    try:
        where.mkdir(parents=True, exist_ok=True)
        with (where / f".{out.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel drops it with the process, however that ends
            if not (out / MANIFEST).is_file():
                print(f"joining {' and '.join(data.sources)}: comparing {images:,} images", file=sys.stderr, flush=True)
            return join(
                folders,
                out,
                leave_out=data.leave_out,
                workers=workers,
                progress=lambda stage, done, total: None,
                origins=[_absolute(source) for source in data.sources],
            )
    except OSError as error:
        raise UserError(
            f"run.dir: {where} cannot be written ({error.strerror or error}); choose another one, or give data.shards"
            " a folder that `python -m brain_dist.shard join` made"
        ) from None


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).resolve())
