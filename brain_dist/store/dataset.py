"""A built shard folder, opened: its manifest and its index in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.collection.spellings import SPLITS
from brain_dist.errors import UserError
from brain_dist.store.index import INDEX, read_columns
from brain_dist.store.manifest import MANIFEST, load_manifest, recorded_sources

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, eq=False)
class Dataset:
    """A built shard folder: its manifest and its index in memory.

    ``columns`` maps each column of :data:`COLUMNS` to an array of length N: numbers as numpy arrays of the column's
    type, strings as object arrays (``patient`` holds None where it is unknown). ``version`` is the manifest's sha256.
    ``sources``: the shard folders of a joined folder (``brain_dist.store.join``), which has no images of its own.
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

    Only the manifest and the index are read and checked; :func:`brain_dist.store.verify.verify` reads the shards.
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
