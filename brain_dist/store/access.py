"""The data of a run, as its configuration names them: staged on this node, joined, with one fold selected."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.common.cores import cpu_cores
from brain_dist.common.files import sha256_bytes
from brain_dist.common.locks import locked
from brain_dist.errors import UserError
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.store.manifest import MANIFEST, SOURCES, load_manifest, recorded_sources
from brain_dist.store.reader import shard_path
from brain_dist.store.stage import stage

if TYPE_CHECKING:
    from brain_dist.config import DataConfig

IMAGES_PER_WORKER = 256  # with fewer, starting a process takes longer than its work


def open_data(data: DataConfig, runs: Path) -> Dataset:
    """Open ``data.shards``, or join ``data.sources``, with the splits of ``data.fold``.

    Every rank may call this at the same time: one process copies or joins, the others wait.

    Args:
        data: the settings.
        runs: the folder of all runs. Joined folders are kept there and used again by runs with the same settings.

    Raises:
        UserError: the data are missing, do not fit together, or do not fit the settings.
    """
    if data.sources:
        return _joined(data, runs)
    if not data.shards:
        raise UserError(
            "data.shards is not set; set it to a folder that `python -m brain_dist.shard build` wrote, or set"
            " data.sources to several"
        )
    return open_shards(data.shards, data.cache_dir).of_fold(data.fold)


def open_shards(shards: str, cache_dir: str | None) -> Dataset:
    """Open a built or joined folder after staging it; no fold is selected."""
    if "://" not in shards and (Path(shards) / SOURCES).is_file():
        sources = [stage(source, cache_dir) for source in recorded_sources(Path(shards))]
        return open_dataset(shards, sources)
    return replace(open_dataset(stage(shards, cache_dir)), origin=_absolute(shards))


def check_shards(dataset: Dataset, rows: np.ndarray) -> None:
    """Check that the shards of these rows [N] exist and are long enough, without reading them.

    Raises:
        UserError: a shard is missing or too short.
    """
    columns = dataset.columns
    names, shard_of_row = np.unique(columns["shard"][rows], return_inverse=True)
    needed = np.zeros(len(names), np.int64)
    np.maximum.at(needed, shard_of_row, (columns["offset"] + columns["size"])[rows])
    for name, least in zip(names, needed, strict=True):
        path = Path(shard_path(dataset.root, dataset.sources, name))
        advice = f"copy or build it again; `python -m brain_dist.shard verify {path.parent}` checks everything"
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path} cannot be used ({error.strerror}); {advice}") from None
        if size < least:
            raise UserError(f"{path} has {size:,} bytes and needs {least:,}; {advice}")


def _joined(data: DataConfig, runs: Path) -> Dataset:
    from brain_dist.store.join import join

    folders = [stage(source, data.cache_dir) for source in data.sources]
    manifests = [load_manifest(folder) for folder in folders]
    request = json.dumps([[version for _, version in manifests], data.leave_out])
    out = runs / f"joined-{sha256_bytes(request.encode())[:12]}"
    images = sum(manifest.samples for manifest, _ in manifests)
    workers = min(cpu_cores(), 1 + images // IMAGES_PER_WORKER)
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with locked(runs / f".{out.name}.lock"):
            if not (out / MANIFEST).is_file():
                print(f"joining {' and '.join(data.sources)}: comparing {images:,} images", file=sys.stderr, flush=True)
            origins = [_absolute(source) for source in data.sources]
            return join(folders, out, leave_out=data.leave_out, workers=workers, origins=origins)
    except OSError as error:
        raise UserError(
            f"run.dir: {runs} cannot be written ({error.strerror or error}); choose another run.dir, or set data.shards"
            " to a folder that `python -m brain_dist.shard join` wrote"
        ) from None


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).resolve())
