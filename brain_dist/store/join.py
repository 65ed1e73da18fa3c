"""Join shard folders: groups reach across them, so that no image of a test group is trained on in any of them.

The joined folder contains a manifest and an index, but no images: its rows name the shards of its sources. Images are
left out, never moved to another split, so that results on a source's test split stay comparable.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from brain_dist import __version__
from brain_dist.collection.pixels import BadImage, examine
from brain_dist.collection.spellings import SPLITS
from brain_dist.common.files import partial_folder, sha256_bytes, write_durably
from brain_dist.common.progress import Progress, no_progress
from brain_dist.common.workers import worker_pool
from brain_dist.copies import search
from brain_dist.errors import Fault, UserError
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.store.index import COLUMNS, INDEX, index_bytes
from brain_dist.store.join_audit import audit_sources
from brain_dist.store.manifest import (
    FORMAT,
    MANIFEST,
    SOURCES,
    Excluded,
    JoinedManifest,
    ShardEntry,
    SourceEntry,
    count_classes,
    load_manifest,
)
from brain_dist.store.reader import ShardReader

METHOD = "joined"


@dataclass(frozen=True, eq=False)
class _Sources:
    """The folders to join; their N images are numbered one folder after another.

    Attributes:
        datasets: the folders, opened.
        names: a different name for each.
        leave_out: name of the folder whose images all become the test split, or None.
        source: int64 [N], number of the folder of each image.
        columns: columns of all their indexes, each [N].
    """

    datasets: list[Dataset]
    names: list[str]
    leave_out: str | None
    source: np.ndarray
    columns: dict[str, np.ndarray]

    @property
    def entries(self) -> list[SourceEntry]:
        """The manifest's entries."""
        return [SourceEntry(name, part.version) for name, part in zip(self.names, self.datasets, strict=True)]


def join(sources: Sequence[Path], out: Path, *, leave_out: str | None, workers: int, progress: Progress = no_progress,
         origins: Sequence[str] = ()) -> Dataset:  # fmt: skip
    """Join complete shard folders into the folder ``out``.

    Groups are joined across the sources: by their own groups, by patients of the same name in datasets of the same
    name, and by exact and near copies among all images. If a joined group is in several splits, its test images are
    kept, or else its validation images; the others are left out. If the process is killed, ``out`` is unchanged.

    Args:
        sources: two or more folders with the same classes, split into train, val and test.
        out: the joined folder. It is unchanged if it was made from the same request.
        leave_out: name of the source whose images all become the test split; the others' test images are trained on.
        workers: processes that decode the images.
        progress: called with (stage, done, total).
        origins: paths or URLs to record for the sources if ``sources`` are copies.

    Raises:
        UserError: the sources do not fit together, ``leave_out`` is unknown, or ``out`` contains something else.
        Fault: a source is damaged.
    """
    parts = _open_sources(sources, leave_out)
    places = json.dumps(list(origins) or [str(path.resolve()) for path in sources]).encode() + b"\n"
    try:
        if _exists(out, parts):
            if (out / SOURCES).read_bytes() != places:  # the sources were moved
                write_durably(out / SOURCES, places)
        else:
            with partial_folder(out) as folder:
                write_durably(folder / SOURCES, places)
                _write_folder(folder, parts, workers, progress)
    except BrokenProcessPool:
        raise UserError("a worker process was killed (out of memory?); join with fewer --workers") from None
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}); join into another folder") from None
    return open_dataset(out, sources)


def source_names(names: Sequence[str]) -> list[str]:
    """Different names: if several folders have the same name, their number is appended to it."""
    times = Counter(names)
    return [f"{name}-{number}" if times[name] > 1 else name for number, name in enumerate(names)]


def _open_sources(paths: Sequence[Path], leave_out: str | None) -> _Sources:
    datasets = [open_dataset(path) for path in paths]
    names = source_names([dataset.name for dataset in datasets])
    if len(datasets) < 2:
        raise UserError("joining needs two or more shard folders")
    if leave_out is not None and leave_out not in names:
        raise UserError(f"leave_out={leave_out} is not one of the joined {', '.join(names)}")
    _check_fit(datasets)
    for dataset, name in zip(datasets, names, strict=True):
        if dataset.folds and name != leave_out:
            raise UserError(f"{dataset.root} was built as folds; rebuild it with --split grouped to join it")
    source = np.repeat(np.arange(len(datasets)), [len(dataset) for dataset in datasets])
    columns = {name: np.concatenate([dataset.columns[name] for dataset in datasets]) for name in COLUMNS}
    return _Sources(datasets, names, leave_out, source, columns)


def _check_fit(datasets: list[Dataset]) -> None:
    """Raise :class:`UserError` unless the folders are different, not joined, and have the same classes."""
    roots: dict[str, Path] = {}
    classes = datasets[0].classes
    for dataset in datasets:
        if dataset.sources:
            raise UserError(f"{dataset.root} is a joined folder; join the folders that it was joined from")
        if roots.setdefault(dataset.version, dataset.root) is not dataset.root:
            raise UserError(f"{dataset.root} and {roots[dataset.version]} are the same shards; join each once")
        if dataset.classes != classes:
            raise UserError(
                f"{dataset.root} has the classes {', '.join(dataset.classes)}, {datasets[0].root} has"
                f" {', '.join(classes)}; rebuild one with a recipe of the other's classes, in the same order"
            )


def _exists(out: Path, parts: _Sources) -> bool:
    """Whether ``out`` is joined from these sources; False if it is absent or empty.

    Raises:
        UserError: ``out`` contains something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MANIFEST).is_file():
        raise UserError(f"{out} exists and is not a complete shard folder; choose another folder or remove it")
    manifest = load_manifest(out)[0]
    if (
        not isinstance(manifest, JoinedManifest)
        or manifest.sources != parts.entries
        or manifest.split != {"method": METHOD, "leave_out": parts.leave_out}
    ):
        raise UserError(f"{out} is not joined from these folders; choose another folder or remove it")
    return True


def _write_folder(folder: Path, parts: _Sources, workers: int, progress: Progress) -> None:
    """Compare all images, group them, leave out, and write the index and, last, the manifest."""
    findings = _find_copies(parts, workers, progress)
    columns = parts.columns | {"split": _joined_splits(parts)}
    kept = keep(columns["split"], findings.groups)
    columns["key"] = _unique_keys(parts)
    columns["group"] = _group_names(columns["key"], findings.groups, kept)
    columns["shard"] = np.array([f"{n}/{shard}" for n, shard in zip(parts.source, columns["shard"], strict=True)])
    rows = [{name: columns[name][row] for name in COLUMNS} for row in np.flatnonzero(kept)]
    rows.sort(key=lambda row: (row["shard"], row["offset"]))
    index = index_bytes(rows)
    write_durably(folder / INDEX, index)
    manifest = JoinedManifest(
        format=FORMAT,
        classes=list(parts.datasets[0].classes),
        counts=count_classes(columns["split"][kept], columns["label"][kept], SPLITS, parts.datasets[0].classes),
        samples=len(rows),
        groups=len(set(columns["group"][kept])),
        name="+".join(parts.names),
        sources=parts.entries,
        split={"method": METHOD, "leave_out": parts.leave_out},
        **{key: _united(parts, key) for key in ("title", "source", "licence", "citation")},
        excluded=_excluded(parts, columns["key"], ~kept),
        audit=audit_sources(findings, parts.source, parts.names, columns),
        shards=_shard_entries(parts, Counter(row["shard"] for row in rows)),
        index_sha256=sha256_bytes(index),
        builder=__version__,
    )
    write_durably(folder / MANIFEST, manifest.to_bytes())


def _find_copies(parts: _Sources, workers: int, progress: Progress) -> search.Findings:
    """Copies and groups among the images of all sources."""
    samples = [(dataset.root, row) for dataset in parts.datasets for row in range(len(dataset))]
    thumbs = []
    with worker_pool(workers) as run:
        for thumb in run(_read_thumbs, samples, 16):
            thumbs.append(thumb)
            progress("decoding", len(thumbs), len(samples))
    _reader.cache_clear()
    hashes = parts.columns["pixel_hash"].tolist()
    return search.find_copies(np.stack(thumbs), hashes, _known_groups(parts), progress=partial(progress, "comparing"))


@functools.cache
def _reader(root: Path) -> ShardReader:
    """One reader per worker process and source."""
    return ShardReader(open_dataset(root))


def _read_thumbs(sample: tuple[Path, int]) -> np.ndarray:
    """(source folder, row) → thumbnails of the image, uint8 [2, 64, 64]."""
    root, row = sample
    try:
        return examine(_reader(root).read(row)).thumbs
    except BadImage as error:
        raise Fault(f"{root}, row {row} of its index: the stored image {error}; build it again") from None


def _known_groups(parts: _Sources) -> list[tuple[str, str | None]]:
    """A name for each image, equal for images that belong together whatever they show: groups, and patients.

    The same patient of the same dataset can be in two folders with images that do not look alike, such as other
    sequences of one scan.
    """
    first: dict[tuple[object, ...], int] = {}
    links = []
    columns = parts.columns
    table = (parts.source.tolist(), columns["group"], columns["dataset"], columns["patient"])
    for row, (source, group, dataset, patient) in enumerate(zip(*table, strict=True)):
        links.append((first.setdefault((source, group), row), row))
        if patient is not None:
            links.append((first.setdefault(("patient", dataset, patient), row), row))
    return [("", str(root)) for root in search.connected(len(parts.source), links)]


def _joined_splits(parts: _Sources) -> np.ndarray:
    """The split of every image in the joined folder, before any is left out: object [N]."""
    split = parts.columns["split"]
    if parts.leave_out is None:
        return split
    is_test = parts.source == parts.names.index(parts.leave_out)
    return np.where(is_test, "test", np.where(split == "test", "train", split)).astype(object)


def keep(split: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Which images stay: those whose split is the highest of their group's, in the order test, val, train.

    Args:
        split: object [N], names of :data:`brain_dist.collection.spellings.SPLITS`.
        groups: int64 [N], numbers below N.

    Returns:
        bool [N].
    """
    rank = np.array([SPLITS.index(name) for name in split])
    highest = np.zeros(len(groups), dtype=rank.dtype)
    np.maximum.at(highest, groups, rank)
    return rank == highest[groups]


def _unique_keys(parts: _Sources) -> np.ndarray:
    """The keys; one that several sources have gets a prefix: the source's name and a dot, which no key contains."""
    keys = parts.columns["key"]
    times = Counter(keys)
    unique = [
        f"{parts.names[source]}.{key}" if times[key] > 1 else key
        for source, key in zip(parts.source, keys, strict=True)
    ]
    return np.array(unique, dtype=object)


def _group_names(keys: np.ndarray, groups: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The key of the first kept image of each image's group; every group keeps at least one."""
    first: dict[int, str] = {}
    for row in np.flatnonzero(kept):
        first.setdefault(int(groups[row]), keys[row])
    return np.array([first[int(group)] for group in groups], dtype=object)


def _united(parts: _Sources, key: str) -> str:
    """The texts of the sources' manifests, each once."""
    return "; ".join(dict.fromkeys(getattr(dataset.manifest, key) for dataset in parts.datasets))


def _excluded(parts: _Sources, keys: np.ndarray, left_out: np.ndarray) -> Excluded:
    """The images that were left out, by source and their split there."""
    counts = {}
    for number, name in enumerate(parts.names):
        splits = Counter(parts.columns["split"][left_out & (parts.source == number)])
        counts[name] = {split: int(count) for split, count in sorted(splits.items())}
    return Excluded(int(left_out.sum()), counts, sorted(keys[left_out].tolist()))


def _shard_entries(parts: _Sources, samples: Counter[str]) -> list[ShardEntry]:
    """The sources' shards that contain samples of the joined folder."""
    entries: list[ShardEntry] = []
    for number, dataset in enumerate(parts.datasets):
        for entry in dataset.manifest.shards:
            name = f"{number}/{entry.name}"
            if samples[name]:
                entries.append(replace(entry, name=name, samples=samples[name]))
    return entries
