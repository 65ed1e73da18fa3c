"""The shard folder as readers see it: manifest, index, and random access to the bytes of a sample.

The manifest is written last, so a folder that has one is complete; its sha256 is the dataset's version.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.errors import Fault, UserError

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
MANIFEST = "manifest.json"
INDEX = "index.parquet"
SOURCES = "sources.json"  # of a joined folder: where the shard folders lie whose images it names
SPLITS = ("train", "val", "test")

# column → Arrow type (by name, so that this module imports without Arrow); the order is the file's order
COLUMNS = {
    "key": "string",
    "shard": "string",
    "offset": "int64",
    "size": "int32",
    "crc32": "uint32",
    "label": "int16",
    "dataset": "string",
    "split": "string",
    "group": "string",
    "patient": "string",
    "width": "int32",
    "height": "int32",
    "mode": "string",
    "pixel_hash": "string",
    "phash": "string",
    "source": "string",
    "head_x": "int32",
    "head_y": "int32",
    "head_w": "int32",
    "head_h": "int32",
    "attributes": "string",
}


@dataclass(frozen=True, eq=False)
class Dataset:
    """A built shard folder: its manifest and its index in memory.

    ``columns`` maps each column of :data:`COLUMNS` to an array of length N: numbers as numpy arrays of the column's
    type, strings as object arrays (``patient`` holds None where it is unknown). ``version`` is the manifest's sha256.
    ``sources``: the shard folders of a joined folder (``brain_dist.data.join``), which has no images of its own.
    ``fold``: which fold of shards built as folds is the test part, once chosen by :meth:`of_fold`. ``origin``: the path
    or URL that ``root`` is a copy of, where it is one.
    """

    root: Path
    manifest: dict[str, Any]
    version: str
    columns: dict[str, np.ndarray]
    sources: tuple[Path, ...] = ()
    fold: int | None = None
    origin: str | None = None

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position in this tuple."""
        return tuple(self.manifest["classes"])

    def __len__(self) -> int:
        return len(self.columns["key"])

    @property
    def folds(self) -> int:
        """How many folds the shards were built as; 0 where they were built as train, val and test."""
        split = self.manifest["split"]
        return int(split["folds"]) if split["method"] == "kfold" else 0

    def of_fold(self, fold: int | None, setting: str = "data.fold") -> Dataset:
        """The dataset with train, val and test as fold number ``fold`` makes them; itself where it has no folds.

        Test is that fold, val the next one (after the last comes the first), train the others; the column ``split`` and
        the manifest's counts say so. :class:`UserError` where folds need a number, or a number needs folds; it calls
        the number by the ``setting`` that gave it.
        """
        if not self.folds:
            if fold is not None:
                raise UserError(f"{setting}={fold}: {self.root} was built without folds; build it with --split kfold")
            return self
        if fold is None or not 0 <= fold < self.folds:
            given = " is not set" if fold is None else f"={fold} is out of range"
            raise UserError(f"{setting}{given}: {self.root} has {self.folds} folds; give 0 to {self.folds - 1}")
        role = {f"fold{number}": "train" for number in range(self.folds)}
        role |= {f"fold{fold}": "test", f"fold{(fold + 1) % self.folds}": "val"}
        counts = {split: dict.fromkeys(self.classes, 0) for split in SPLITS}
        for name, by_class in self.manifest["counts"].items():
            for kind, number in by_class.items():
                counts[role[name]][kind] += number
        split = np.array([role[name] for name in self.columns["split"]], dtype=object)
        return replace(
            self, manifest=self.manifest | {"counts": counts}, columns=self.columns | {"split": split}, fold=fold
        )

    def rows(self, split: str) -> np.ndarray:
        """Row numbers (int64, ascending) of ``split``, one of train, val and test; empty where it has no samples."""
        if split not in SPLITS:
            raise UserError(f"split {split!r} is none of {', '.join(SPLITS)}")
        if self.folds and self.fold is None:
            raise UserError(f"{self.root} was built as folds and has no {split} part until data.fold chooses one")
        return np.flatnonzero(self.columns["split"] == split).astype(np.int64)


def open_dataset(root: str | Path, sources: Sequence[Path] | None = None) -> Dataset:
    """Open a finished shard folder; a :class:`UserError` says what is missing or altered.

    Only the manifest and the index are read and checked; :func:`brain_dist.data.verify.verify` reads the shards.
    ``sources``: where the sources of a joined folder lie, if not where they lay when it was made.
    """
    root = Path(root)
    manifest, version = load_manifest(root)
    try:
        data = (root / INDEX).read_bytes()
    except OSError:
        raise UserError(f"{root / INDEX} is missing; build the shard folder again") from None
    if hashlib.sha256(data).hexdigest() != manifest["index_sha256"]:
        raise UserError(f"{root / INDEX} is not the index that {MANIFEST} describes (sha256 differs); build it again")
    columns = read_columns(data)
    if len(columns["key"]) != manifest["samples"]:
        raise UserError(f"{root / INDEX} has {len(columns['key'])} rows, {MANIFEST} says {manifest['samples']}")
    return Dataset(root, manifest, version, columns, _sources(root, manifest, sources))


def _sources(root: Path, manifest: dict[str, Any], given: Sequence[Path] | None) -> tuple[Path, ...]:
    """The folders that a joined folder names, checked to be those that were joined; none for any other folder."""
    if "sources" not in manifest:
        return ()
    mend = "join again with `python -m brain_dist.shard join`"
    given = [Path(path) for path in recorded_sources(root)] if given is None else given
    if len(given) != len(manifest["sources"]):
        raise UserError(f"{root} was joined from {len(manifest['sources'])} folders, not {len(given)}; {mend}")
    for source, path in zip(manifest["sources"], given, strict=True):
        try:
            version = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
        except OSError:
            raise UserError(f"{path}, which {root} was joined from, is gone; put it back or {mend}") from None
        if version != source["version"]:
            raise UserError(f"{path} was rebuilt since {root} was joined from it; {mend}")
    return tuple(given)


def recorded_sources(root: Path) -> list[str]:
    """Where the sources of a joined folder lay when it was made: paths or URLs."""
    try:
        paths = json.loads((root / SOURCES).read_bytes())
        return [str(path) for path in paths]
    except (OSError, ValueError, TypeError):
        raise UserError(f"{root / SOURCES} is missing or damaged; join again") from None


def load_manifest(root: Path) -> tuple[dict[str, Any], str]:
    """(manifest, its sha256) of a shard folder; :class:`UserError` unless complete and of this format version."""
    path = root / MANIFEST
    try:
        text = path.read_bytes()
    except OSError:
        raise UserError(
            f"{root} is no finished shard folder (no {MANIFEST}); make one with "
            "`python -m brain_dist.shard build --source FOLDER --out FOLDER`"
        ) from None
    try:
        manifest = json.loads(text)
    except ValueError:
        raise UserError(f"{path} is not valid JSON; build the shard folder again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise UserError(
            f"{path} has format version {found!r}, this program reads {FORMAT}; build the shard folder again"
        )
    needed = ("name", "classes", "counts", "samples", "groups", "split", "audit", "shards", "index_sha256")
    lacking = [key for key in needed if key not in manifest]
    if lacking:
        raise UserError(f"{path} lacks {', '.join(lacking)}; build the shard folder again")
    return manifest, hashlib.sha256(text).hexdigest()


def arrow_schema() -> pa.Schema:
    """The index's Arrow schema; only ``patient`` may be null."""
    import pyarrow as pa

    kinds = {
        "string": pa.string(),
        "int16": pa.int16(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "uint32": pa.uint32(),
    }
    return pa.schema([pa.field(name, kinds[kind], nullable=name == "patient") for name, kind in COLUMNS.items()])


def index_bytes(rows: list[dict[str, Any]]) -> bytes:
    """Index rows (one dict a sample, in the order of the file) → the bytes of ``index.parquet``."""
    import pyarrow as pa
    import pyarrow.json as pj
    import pyarrow.parquet as pq

    # By way of JSON: what else makes Arrow's arrays of Python's values imports pandas first, which takes a second
    text = "\n".join(map(json.dumps, rows)).encode()
    table = pj.read_json(
        pa.BufferReader(text),
        pj.ReadOptions(use_threads=False, block_size=len(text)),
        pj.ParseOptions(explicit_schema=arrow_schema(), unexpected_field_behavior="error"),
    ).cast(arrow_schema())  # which fields may be null gets lost on the way
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def read_columns(data: bytes) -> dict[str, np.ndarray]:
    """Bytes of ``index.parquet`` → arrays by column; :class:`UserError` where columns or types are others."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without Arrow's threads: one of them still running as the interpreter ends aborts the process, now and then
        table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
    except pa.ArrowInvalid as error:
        raise UserError(f"{INDEX} is not a Parquet file ({error}); build the shard folder again") from None
    if not table.schema.equals(arrow_schema()):
        raise UserError(f"{INDEX} does not have this format's columns; build the shard folder again")
    return {
        name: table[name].to_numpy() if kind != "string" else _strings(table[name]) for name, kind in COLUMNS.items()
    }


def _strings(column: pa.ChunkedArray) -> np.ndarray:
    # Dictionary-encoding first: a column of 100,000 splits or groups then holds few Python strings, shared.
    values = column.combine_chunks().dictionary_encode(null_encoding="encode")
    lookup = np.array(values.dictionary.to_pylist(), dtype=object)
    return lookup[values.indices.to_numpy()]


def shard_path(root: Path, sources: Sequence[Path], shard: str) -> Path:
    """Where a shard of the index lies; ``1/NAME.tar`` of a joined folder is in its second source."""
    if not sources:
        return root / shard
    number, _, name = shard.partition("/")
    return sources[int(number)] / name


class ShardReader:
    """Reads one sample's encoded image at a time, by row, in any order and from several threads.

    Files are opened when first needed and kept open; a pickled copy (for a worker process) opens its own.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._files: dict[str, int] = {}
        columns = dataset.columns
        self._root, self._sources = dataset.root, dataset.sources
        self._keys, self._shards = columns["key"], columns["shard"]
        self._offsets, self._sizes, self._crcs = columns["offset"], columns["size"], columns["crc32"]

    def read(self, row: int) -> bytes:
        """Bytes of the encoded image of ``row``; :class:`Fault` names shard, key and offset where they are bad."""
        shard, offset, size = self._shards[row], int(self._offsets[row]), int(self._sizes[row])
        where = f"{shard_path(self._root, self._sources, shard)}, sample {self._keys[row]} at byte {offset}"
        try:
            data = os.pread(self._descriptor(shard), size, offset)
        except OSError as error:
            raise Fault(f"{where}: cannot be read ({error.strerror}); `brain_dist.shard verify` checks all") from None
        if len(data) != size:
            raise Fault(f"{where}: the shard ends after {len(data)} of {size} bytes; copy or build it again")
        if zlib.crc32(data) != self._crcs[row]:
            raise Fault(f"{where}: the bytes are damaged (crc32 differs); copy or build the shard again")
        return data

    def _descriptor(self, shard: str) -> int:
        descriptor = self._files.get(shard)
        if descriptor is None:
            opened = os.open(shard_path(self._root, self._sources, shard), os.O_RDONLY | os.O_CLOEXEC)
            # Two threads may both open it: the first one stays, the other is closed.
            descriptor = self._files.setdefault(shard, opened)
            if descriptor != opened:
                os.close(opened)
        return descriptor

    def close(self) -> None:
        """Close the files; reading again opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def __del__(self) -> None:
        self.close()
