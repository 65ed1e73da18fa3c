"""Join shard folders for one run: groups reach across them, and a test picture of one is not another's training.

The joined folder holds a manifest and an index; no image is copied: its rows name the sources' own shards. Rows are
left out, never moved to another split: a test part that changed with what it is joined to could be compared with
nothing.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist import __version__
from brain_dist.collection.pixels import BadImage, examine
from brain_dist.collection.spellings import SPLITS
from brain_dist.common.files import partial_folder, write_durably
from brain_dist.common.workers import worker_pool
from brain_dist.copies import search
from brain_dist.errors import Fault, UserError
from brain_dist.store.build import Progress
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.store.index import COLUMNS, INDEX, index_bytes
from brain_dist.store.manifest import FORMAT, MANIFEST, SOURCES, load_manifest
from brain_dist.store.reader import ShardReader

METHOD = "joined"


def join(sources: Sequence[Path], out: Path, *, leave_out: str | None, workers: int, progress: Progress,
         origins: Sequence[str] = ()) -> Dataset:  # fmt: skip
    """Join finished shard folders into the folder ``out``; it is complete or as it was before.

    Groups are joined across the sources: by their own groups, by patients of the same name in datasets of the same
    name, and by exact and near copies between all images. Where a joined group is then in several splits, its test
    images stay, else its validation images; its others are left out.

    Args:
        sources: two or more folders with the same classes, split into train, val and test.
        out: a finished one that was made from the same request is left as it is.
        leave_out: name of the source whose images all become the test part; the others' test parts become training.
        workers: processes that decode the images again for comparing.
        progress: called with stage, done, total.
        origins: what to record as the places of the sources where ``sources`` are copies: paths or URLs.

    Raises:
        UserError: sources that do not fit together, an unknown ``leave_out``, an ``out`` that is something else.
        Fault: a source's bytes are damaged.
    """
    parts = [open_dataset(path) for path in sources]
    names = source_names([part.name for part in parts])
    _check(parts, names, leave_out)
    request = {
        "name": "+".join(names),
        "sources": [{"name": name, "version": part.version} for name, part in zip(names, parts, strict=True)],
        "split": {"method": METHOD, "leave_out": leave_out},
    }
    places = json.dumps(list(origins) or [str(path.resolve()) for path in sources]).encode() + b"\n"
    try:
        if out.exists() and _finished(out, request):
            if (out / SOURCES).read_bytes() != places:  # the same folders, moved
                write_durably(out / SOURCES, places)
        else:
            with partial_folder(out) as folder:
                write_durably(folder / SOURCES, places)
                _fill(folder, parts, names, request, workers, progress)
    except BrokenProcessPool:
        raise UserError("a worker process was killed (out of memory?); join with fewer --workers") from None
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}); join into another folder") from None
    return open_dataset(out, sources)


def source_names(names: Sequence[str]) -> list[str]:
    """Names that differ: where folders have one name, the folder's number is appended to each."""
    times = Counter(names)
    return [f"{name}-{number}" if times[name] > 1 else name for number, name in enumerate(names)]


def _check(parts: list[Dataset], names: list[str], leave_out: str | None) -> None:
    if len(parts) < 2:
        raise UserError("joining needs two or more shard folders")
    if leave_out is not None and leave_out not in names:
        raise UserError(f"leave_out={leave_out} is none of the joined {', '.join(names)}")
    first: dict[str, Path] = {}
    for part, name in zip(parts, names, strict=True):
        if part.sources:
            raise UserError(f"{part.root} is a joined folder; join the folders that it names")
        if first.setdefault(part.version, part.root) is not part.root:
            raise UserError(f"{part.root} and {first[part.version]} are the same shards; join each once")
        if part.classes != parts[0].classes:
            raise UserError(
                f"{part.root} has the classes {', '.join(part.classes)}, {parts[0].root} has"
                f" {', '.join(parts[0].classes)}; rebuild one with a recipe of the other's classes, in their order"
            )
        if part.folds and name != leave_out:
            raise UserError(f"{part.root} was built as folds; rebuild it with --split grouped to join it")


def _finished(out: Path, request: dict[str, Any]) -> bool:
    """Whether ``out`` holds what is asked for; False for an empty folder, UserError for anything else."""
    if out.is_dir() and not any(out.iterdir()):
        return False
    if not (out / MANIFEST).is_file():
        raise UserError(f"{out} exists and is no finished shard folder; name another one or remove it")
    manifest = load_manifest(out)[0]
    if any(manifest.get(key) != value for key, value in request.items()):
        raise UserError(f"{out} holds other shards than these joined; name another folder or remove it")
    return True


def _fill(folder: Path, parts: list[Dataset], names: list[str], request: dict[str, Any], workers: int,
          progress: Progress) -> None:  # fmt: skip
    """Compare, group, leave out; write the index and, last, the manifest."""
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in COLUMNS}
    source = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    asked = [(part.root, row) for part in parts for row in range(len(part))]
    thumbs = []
    with worker_pool(workers) as run:
        for made in run(_thumbs, asked, 16):
            thumbs.append(made)
            progress("decoding", len(thumbs), len(asked))
    _reader.cache_clear()
    known = _known_together(source, columns)
    findings = search.find_copies(
        np.stack(thumbs), columns["pixel_hash"].tolist(), known, progress=partial(progress, "comparing")
    )

    before = columns["split"]
    columns["split"] = _roles(before, source, names, request["split"]["leave_out"])
    kept = keep(columns["split"], findings.groups)
    columns["key"] = _unique_keys(columns["key"], source, names)
    columns["group"] = _group_names(columns["key"], findings.groups, kept)
    columns["shard"] = np.array([f"{number}/{shard}" for number, shard in zip(source, columns["shard"], strict=True)])
    rows = [{name: _plain(columns[name][row]) for name in COLUMNS} for row in np.flatnonzero(kept)]
    rows.sort(key=lambda row: (row["shard"], row["offset"]))
    data = index_bytes(rows)
    write_durably(folder / INDEX, data)

    classes, labels = parts[0].classes, columns["label"]
    filled = Counter(row["shard"] for row in rows)
    manifest = {
        "format": FORMAT,
        "classes": list(classes),
        "counts": {
            split: {
                kind: int((kept & (columns["split"] == split) & (labels == label)).sum())
                for label, kind in enumerate(classes)
            }
            for split in SPLITS
        },
        "samples": len(rows),
        "groups": len(set(columns["group"][kept])),
        **request,
        **{key: _united(parts, key) for key in ("title", "source", "licence", "citation")},
        "excluded": _excluded(columns["key"], before, source, names, ~kept),
        "audit": _audit(findings, source, names, columns),
        "shards": [
            entry | {"name": name, "samples": filled[name]}
            for number, part in enumerate(parts)
            for entry in part.manifest["shards"]
            if filled[name := f"{number}/{entry['name']}"]
        ],
        "index_sha256": hashlib.sha256(data).hexdigest(),
        "builder": __version__,
    }
    write_durably(folder / MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())


@functools.cache
def _reader(root: Path) -> ShardReader:
    """One reader a worker process and source."""
    return ShardReader(open_dataset(root))


def _thumbs(sample: tuple[Path, int]) -> np.ndarray:
    """(source folder, row) → the thumbnails that the audit compares."""
    root, row = sample
    try:
        return examine(_reader(root).read(row)).thumbs
    except BadImage as error:
        raise Fault(f"{root}, row {row} of its index: the stored image {error}; build it again") from None


def _known_together(source: np.ndarray, columns: dict[str, np.ndarray]) -> list[tuple[str, str | None]]:
    """A name for each image that those share which belong together whatever they show: groups, and patients.

    The same patient of the same dataset may be in two folders with pictures that do not look alike, such as other
    sequences of one scan.
    """
    first: dict[tuple[object, ...], int] = {}
    links = []
    about = (source.tolist(), columns["group"], columns["dataset"], columns["patient"])
    for row, (number, group, dataset, patient) in enumerate(zip(*about, strict=True)):
        links.append((first.setdefault((number, group), row), row))
        if patient is not None:
            links.append((first.setdefault(("patient", dataset, patient), row), row))
    return [("", str(root)) for root in search.connected(len(source), links)]


def _roles(split: np.ndarray, source: np.ndarray, names: list[str], leave_out: str | None) -> np.ndarray:
    """The split of every row in the joined folder, before anything is left out: object [N]."""
    if leave_out is None:
        return split
    held = source == names.index(leave_out)
    return np.where(held, "test", np.where(split == "test", "train", split)).astype(object)


def keep(split: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """bool [N]: rows whose split is the highest of their group's, test over val over train; the others are left out.

    ``split`` object [N], names of :data:`brain_dist.store.index.SPLITS`; ``groups`` int64 [N], numbers below N.
    """
    rank = np.array([SPLITS.index(name) for name in split])
    highest = np.zeros(len(groups), dtype=rank.dtype)
    np.maximum.at(highest, groups, rank)
    return rank == highest[groups]


def _unique_keys(keys: np.ndarray, source: np.ndarray, names: list[str]) -> np.ndarray:
    """Keys that several sources have get the source's name and a dot, which no key has, before them."""
    times = Counter(keys)
    return np.array(
        [f"{names[number]}.{key}" if times[key] > 1 else key for number, key in zip(source, keys, strict=True)],
        dtype=object,
    )


def _group_names(keys: np.ndarray, groups: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """A group's name is the key of its first image that is kept; every group keeps at least one."""
    first: dict[int, str] = {}
    for row in np.flatnonzero(kept):
        first.setdefault(int(groups[row]), keys[row])
    return np.array([first[int(group)] for group in groups], dtype=object)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _united(parts: list[Dataset], key: str) -> str:
    """The sources' texts, each once."""
    return "; ".join(dict.fromkeys(str(part.manifest.get(key, "not stated")) for part in parts))


def _excluded(keys: np.ndarray, split: np.ndarray, source: np.ndarray, names: list[str],
              left: np.ndarray) -> dict[str, Any]:  # fmt: skip
    """What was left out: by source and its own split, and the keys."""
    counts = {
        name: {part: int(number) for part, number in sorted(Counter(split[left & (source == at)]).items())}
        for at, name in enumerate(names)
    }
    return {"samples": int(left.sum()), "counts": counts, "keys": sorted(keys[left].tolist())}


def _audit(findings: search.Findings, source: np.ndarray, names: list[str],
           columns: dict[str, np.ndarray]) -> dict[str, Any]:  # fmt: skip
    """Copies among all images; ``between`` the sources: how many images ``of`` one have an exact copy, or else a near
    one, ``in`` another, and of how many the patient is there."""
    labels = columns["label"].astype(np.int64)
    exact, near = _copies(findings, source, len(names))
    same, similar = _copies(findings, labels, int(labels.max()) + 1)
    other_class = same | similar
    other_class[np.arange(len(labels)), labels] = False
    patients = [
        (dataset, patient) if patient is not None else None
        for dataset, patient in zip(columns["dataset"], columns["patient"], strict=True)
    ]
    of_source = [[patients[row] for row in np.flatnonzero(source == at)] for at in range(len(names))]
    between = []
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            if i != j:
                there = set(of_source[j]) - {None}
                counts = {"exact": int(exact[source == i, j].sum()), "near": int(near[source == i, j].sum())}
                shared = sum(patient in there for patient in of_source[i])
                between.append({"of": one, "in": other, **counts, "patient": shared})
    return {
        "exact_redundant": int((findings.copy_of != np.arange(len(labels))).sum()),
        "near_pairs": len(findings.near),
        "near_pairs_mirrored": int(findings.near.mirrored.sum()),
        "images_with_label_conflict": int(other_class.any(axis=1).sum()),
        "between": between,
    }


def _copies(findings: search.Findings, kind: np.ndarray, kinds: int) -> tuple[np.ndarray, np.ndarray]:
    """Two bool [N, kinds]: whether image n has a copy of that kind with the same pixels; whether only a near one."""
    of_pixels = np.zeros((len(kind), kinds), dtype=bool)
    of_pixels[findings.copy_of, kind] = True
    alike = np.zeros_like(of_pixels)
    np.logical_or.at(alike, findings.near.first, of_pixels[findings.near.second])
    np.logical_or.at(alike, findings.near.second, of_pixels[findings.near.first])
    exact = of_pixels[findings.copy_of]
    return exact, alike[findings.copy_of] & ~exact
