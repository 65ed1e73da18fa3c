"""Join shard folders: groups reach across them, so that no image of a test group is trained on in any of them.

The joined folder contains a manifest and an index, but no images: its rows name the shards of its sources. Images are
left out, never moved to another split, so that results on a source's test split stay comparable.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, permutations
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist import __version__
from brain_dist.collection.spellings import NO_TUMOR, SPLITS, normalize
from brain_dist.common.files import partial_folder, sha256_bytes, write_atomically, write_durably
from brain_dist.common.progress import Progress, no_progress
from brain_dist.copies import search
from brain_dist.errors import UserError
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.store.index import COLUMNS, INDEX, index_bytes
from brain_dist.store.manifest import (
    FORMAT,
    MANIFEST,
    SOURCES,
    Excluded,
    JoinedManifest,
    SourceEntry,
    count_classes,
    load_manifest,
)
from brain_dist.store.reader import read_thumbs

METHOD = "joined"
NO_TUMOUR, TUMOUR = "notumor", "tumor"


@dataclass(frozen=True, eq=False)
class _Sources:
    """The folders to join; their N images are numbered one folder after another.

    Attributes:
        datasets: the folders, opened.
        names: a different name for each.
        classes: classes of the joined folder.
        leave_out: name of the folder whose images all become the test split, or None.
        source: int64 [N], number of the folder of each image.
        columns: columns of all their indexes, each [N]; the labels are positions in ``classes``.
    """

    datasets: list[Dataset]
    names: list[str]
    classes: tuple[str, ...]
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

    Classes are joined by their names, see :func:`common_classes`. Groups are joined across the sources: by their own
    groups, by patients of the same name in datasets of the same name, and by exact and near copies among all images. If
    a joined group is in several splits, its test images are kept, or else its validation images; the others are left
    out. If the process is killed, ``out`` is unchanged.

    Args:
        sources: two or more folders, split into train, val and test.
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
    if _exists(out, parts):
        _record_sources(out, places)
    else:
        try:
            with partial_folder(out) as folder:
                write_durably(folder / SOURCES, places)
                _write_folder(folder, parts, workers, progress)
        except UserError:
            if not _exists(out, parts):  # another process may have joined them at the same time
                raise
    return open_dataset(out, sources)


def _record_sources(out: Path, places: bytes) -> None:
    """Replace the record of where the sources are if it is damaged or they were moved."""
    with contextlib.suppress(OSError):
        if (out / SOURCES).read_bytes() == places:
            return
    try:
        write_atomically(out / SOURCES, places)
    except OSError as error:
        raise UserError(
            f"{out / SOURCES} cannot be written ({error.strerror}), and does not say where the joined folders are now; "
            "join them into another folder"
        ) from None


def common_classes(classes: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The classes of a folder that joins folders with these classes.

    If some folder has the class tumor, the classes are notumor and tumor, and every other class counts as tumor.
    Otherwise they are those of the folder with the most classes, of which the others may lack some.

    Raises:
        UserError: a folder has classes that do not fit the others.
    """
    if any(TUMOUR in names for names in classes):
        for name in chain.from_iterable(classes):
            if name != NO_TUMOUR and normalize(name) in NO_TUMOR:
                raise UserError(
                    f"the class {name} would count as {TUMOUR}, a class of another folder; rebuild its folder with a"
                    f" recipe whose class is called {NO_TUMOUR}"
                )
        return (NO_TUMOUR, TUMOUR)
    most = max(classes, key=len)
    for names in classes:
        if not set(names) <= set(most):
            raise UserError(
                f"the classes {', '.join(names)} of one folder do not fit {', '.join(most)} of another; rebuild one"
                " with a recipe of the other's classes"
            )
    return most


def _open_sources(paths: Sequence[Path], leave_out: str | None) -> _Sources:
    datasets = [open_dataset(path) for path in paths]
    if len(datasets) < 2:
        raise UserError("joining needs two or more shard folders")
    times = Counter(dataset.name for dataset in datasets)
    names = [
        f"{dataset.name}-{number}" if times[dataset.name] > 1 else dataset.name
        for number, dataset in enumerate(datasets)
    ]
    if leave_out is not None and leave_out not in names:
        raise UserError(f"leave_out={leave_out} is not one of the joined {', '.join(names)}")
    roots: dict[str, Path] = {}
    for dataset, name in zip(datasets, names, strict=True):
        if dataset.sources:
            raise UserError(f"{dataset.root} is a joined folder; join the folders that it was joined from")
        if roots.setdefault(dataset.version, dataset.root) is not dataset.root:
            raise UserError(f"{dataset.root} and {roots[dataset.version]} are the same shards; join each once")
        if dataset.folds and name != leave_out:
            raise UserError(f"{dataset.root} was built as folds; rebuild it with --split grouped to join it")
    classes = common_classes([dataset.classes for dataset in datasets])
    source = np.repeat(np.arange(len(datasets)), [len(dataset) for dataset in datasets])
    columns = {name: np.concatenate([dataset.columns[name] for dataset in datasets]) for name in COLUMNS}
    columns["label"] = np.concatenate([_labels(dataset, classes) for dataset in datasets])
    return _Sources(datasets, names, classes, leave_out, source, columns)


def _labels(dataset: Dataset, classes: tuple[str, ...]) -> np.ndarray:
    """The label of each image among the joined folder's classes, int16 [N]."""
    joined = [classes.index(name if name in classes else TUMOUR) for name in dataset.classes]
    return np.array(joined, dtype=np.int16)[dataset.columns["label"]]


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
    columns = dict(parts.columns)
    if parts.leave_out is not None:  # its images are the test split, and the other test images are trained on
        train = np.where(columns["split"] == "test", "train", columns["split"])
        columns["split"] = np.where(parts.source == parts.names.index(parts.leave_out), "test", train).astype(object)
    kept = keep(columns["split"], findings.groups)
    columns["key"] = _unique_keys(parts)
    first: dict[int, str] = {}  # the key of a group's first kept image names it; every group keeps at least one
    for row in np.flatnonzero(kept):
        first.setdefault(int(findings.groups[row]), columns["key"][row])
    columns["group"] = np.array([first[int(group)] for group in findings.groups], dtype=object)
    columns["shard"] = np.array([f"{n}/{shard}" for n, shard in zip(parts.source, columns["shard"], strict=True)])
    rows = [{name: columns[name][row] for name in COLUMNS} for row in np.flatnonzero(kept)]
    rows.sort(key=lambda row: (row["shard"], row["offset"]))
    samples = Counter(row["shard"] for row in rows)
    index = index_bytes(rows)
    write_durably(folder / INDEX, index)
    manifest = JoinedManifest(
        format=FORMAT,
        classes=list(parts.classes),
        counts=count_classes(columns["split"][kept], columns["label"][kept], SPLITS, parts.classes),
        samples=len(rows),
        groups=len(set(columns["group"][kept])),
        name="+".join(parts.names),
        sources=parts.entries,
        split={"method": METHOD, "leave_out": parts.leave_out},
        **{
            key: "; ".join(dict.fromkeys(getattr(dataset.manifest, key) for dataset in parts.datasets))
            for key in ("title", "source", "licence", "citation")
        },
        excluded=_excluded(parts, columns["key"], ~kept),
        audit=_audit(parts, findings, columns),
        shards=[
            replace(entry, name=f"{number}/{entry.name}", samples=samples[f"{number}/{entry.name}"])
            for number, dataset in enumerate(parts.datasets)
            for entry in dataset.manifest.shards
            if samples[f"{number}/{entry.name}"]
        ],
        index_sha256=sha256_bytes(index),
        builder=__version__,
    )
    write_durably(folder / MANIFEST, manifest.to_bytes())


def _find_copies(parts: _Sources, workers: int, progress: Progress) -> search.Findings:
    """Copies and groups among the images of all sources."""
    thumbs = read_thumbs([(dataset, range(len(dataset))) for dataset in parts.datasets], workers, progress)
    hashes = parts.columns["pixel_hash"].tolist()
    return search.find_copies(thumbs, hashes, _known_groups(parts), progress=partial(progress, "comparing"))


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


def _excluded(parts: _Sources, keys: np.ndarray, left_out: np.ndarray) -> Excluded:
    """The images that were left out, by source and their split there."""
    counts = {}
    for number, name in enumerate(parts.names):
        splits = Counter(parts.columns["split"][left_out & (parts.source == number)])
        counts[name] = {split: int(count) for split, count in sorted(splits.items())}
    return Excluded(int(left_out.sum()), counts, sorted(keys[left_out].tolist()))


def _audit(parts: _Sources, findings: search.Findings, columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """Counts of copies, as :func:`brain_dist.copies.search.counts`, and those between each pair of sources.

    ``between`` gives how many images ``of`` one source have an exact copy ``in`` another, how many only a near copy,
    and of how many the patient is there.
    """
    patients = list(zip(columns["dataset"], columns["patient"], strict=True))
    counts = search.counts(findings, columns["label"], patients, np.zeros(len(patients), dtype=int))
    keys = ("exact_redundant", "near_pairs", "near_pairs_mirrored", "images_with_label_conflict")
    exact, near = _copies_in_sources(findings, parts.source, len(parts.names))
    known: list[set[tuple[str, str]]] = [set() for _ in parts.names]
    for number, patient in zip(parts.source, patients, strict=True):
        if patient[1] is not None:
            known[number].add(patient)
    between = []
    for one, other in permutations(range(len(parts.names)), 2):
        own = np.flatnonzero(parts.source == one)
        between.append({
            "of": parts.names[one],
            "in": parts.names[other],
            "exact": int(exact[own, other].sum()),
            "near": int(near[own, other].sum()),
            "patient": sum(patients[row] in known[other] for row in own),
        })  # fmt: skip
    return {**{key: counts[key] for key in keys}, "between": between}


def _copies_in_sources(findings: search.Findings, source: np.ndarray, sources: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether each of N images has an exact copy in each source, and whether it has only a near copy: bool [N, S]."""
    same_pixels = np.zeros((len(source), sources), dtype=bool)
    same_pixels[findings.copy_of, source] = True
    near = np.zeros_like(same_pixels)
    np.logical_or.at(near, findings.near.first, same_pixels[findings.near.second])
    np.logical_or.at(near, findings.near.second, same_pixels[findings.near.first])
    exact = same_pixels[findings.copy_of]
    return exact, near[findings.copy_of] & ~exact
