"""An open shard folder: its manifest and its index in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from brain_dist.collection.spellings import SPLITS
from brain_dist.common.files import sha256_bytes, sha256_file
from brain_dist.errors import UserError
from brain_dist.store.index import INDEX, read_columns
from brain_dist.store.manifest import MANIFEST, JoinedManifest, Manifest, load_manifest, recorded_sources


@dataclass(frozen=True, eq=False)
class Dataset:
    """An open shard folder with N samples.

    Attributes:
        root: the folder.
        manifest: its manifest.
        version: sha256 (hex) of the manifest.
        columns: column of :data:`~brain_dist.store.index.COLUMNS` → array [N]: numbers in the column's type, strings
            as objects (``patient`` is None if unknown).
        sources: the shard folders of a joined folder, which has no images of its own; empty for any other folder.
        fold: the test fold, once :meth:`of_fold` has selected it.
        origin: path or URL that ``root`` is a copy of, if it is one.
    """

    root: Path
    manifest: Manifest
    version: str
    columns: dict[str, np.ndarray]
    sources: tuple[Path, ...] = ()
    fold: int | None = None
    origin: str | None = None

    @property
    def name(self) -> str:
        """Name of the collection."""
        return self.manifest.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position in this tuple."""
        return tuple(self.manifest.classes)

    def __len__(self) -> int:
        return len(self.columns["key"])

    @property
    def folds(self) -> int:
        """Number of folds that the shards were built with; 0 if they were built as train, val and test."""
        split = self.manifest.split
        return int(split["folds"]) if split["method"] == "kfold" else 0

    def of_fold(self, fold: int | None, setting: str = "data.fold") -> Dataset:
        """The dataset with the splits of one fold; unchanged if it has no folds.

        The fold is the test split, the next one (after the last the first) the validation split, and the others are
        the training split. The column ``split`` and the manifest's counts change accordingly.

        Args:
            fold: number of the test fold.
            setting: name of the setting in error messages.

        Raises:
            UserError: the dataset has folds and ``fold`` is None or out of range, or it has none and ``fold`` is set.
        """
        if not self.folds:
            if fold is not None:
                raise UserError(f"{setting}={fold}: {self.root} was built without folds; build it with --split kfold")
            return self
        if fold is None or not 0 <= fold < self.folds:
            problem = " is not set" if fold is None else f"={fold} is out of range"
            raise UserError(f"{setting}{problem}: {self.root} has {self.folds} folds; set it to 0 to {self.folds - 1}")
        split_of = {f"fold{number}": "train" for number in range(self.folds)}
        split_of |= {f"fold{fold}": "test", f"fold{(fold + 1) % self.folds}": "val"}
        counts = {split: dict.fromkeys(self.classes, 0) for split in SPLITS}
        for name, by_class in self.manifest.counts.items():
            for class_name, number in by_class.items():
                counts[split_of[name]][class_name] += number
        splits = np.array([split_of[name] for name in self.columns["split"]], dtype=object)
        manifest = replace(self.manifest, counts=counts)
        return replace(self, manifest=manifest, columns=self.columns | {"split": splits}, fold=fold)

    def of_classes(self, classes: tuple[str, ...], class_of: Mapping[str, str]) -> Dataset:
        """The dataset with other classes, into which its own are joined; version, rows and splits stay.

        Args:
            classes: the other classes.
            class_of: own class → other class.
        """
        label_of = np.array([classes.index(class_of[name]) for name in self.classes], dtype=np.int16)
        counts = {split: dict.fromkeys(classes, 0) for split in self.manifest.counts}
        for split, by_class in self.manifest.counts.items():
            for name, number in by_class.items():
                counts[split][class_of[name]] += number
        manifest = replace(self.manifest, classes=list(classes), counts=counts)
        return replace(self, manifest=manifest, columns=self.columns | {"label": label_of[self.columns["label"]]})

    def rows(self, split: str) -> np.ndarray:
        """Row numbers (int64 [N], ascending) of train, val or test; empty if that split has no samples.

        Raises:
            UserError: there is no such split, or the fold is not selected.
        """
        if split not in SPLITS:
            raise UserError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        if self.folds and self.fold is None:
            raise UserError(f"{self.root} was built as folds: set data.fold to select its {split} split")
        return np.flatnonzero(self.columns["split"] == split).astype(np.int64)


def open_dataset(root: str | Path, sources: Sequence[Path] | None = None) -> Dataset:
    """Open a complete shard folder.

    Reads and checks the manifest and the index; :func:`brain_dist.building.verify.verify` checks the shards, too.

    Args:
        root: the folder.
        sources: current paths of the sources of a joined folder; None takes those of when it was joined.

    Raises:
        UserError: something is missing or was altered.
    """
    root = Path(root)
    manifest, version = load_manifest(root)
    try:
        data = (root / INDEX).read_bytes()
    except OSError:
        raise UserError(f"{root / INDEX} is missing; build the shard folder again") from None
    if sha256_bytes(data) != manifest.index_sha256:
        raise UserError(
            f"{root / INDEX} is not the index of this {MANIFEST} (sha256 differs); build the shard folder again"
        )
    columns = read_columns(data)
    if len(columns["key"]) != manifest.samples:
        raise UserError(f"{root / INDEX} has {len(columns['key'])} rows, {MANIFEST} says {manifest.samples}")
    return Dataset(root, manifest, version, columns, _checked_sources(root, manifest, sources))


def _checked_sources(root: Path, manifest: Manifest, sources: Sequence[Path] | None) -> tuple[Path, ...]:
    """The sources of a joined folder, unchanged since it was joined; empty for any other folder."""
    if not isinstance(manifest, JoinedManifest):
        return ()
    advice = "join again with `python -m brain_dist.shard join`"
    paths = [Path(path) for path in recorded_sources(root)] if sources is None else sources
    if len(paths) != len(manifest.sources):
        raise UserError(f"{root} was joined from {len(manifest.sources)} folders, not {len(paths)}; {advice}")
    for source, path in zip(manifest.sources, paths, strict=True):
        try:
            version = sha256_file(path / MANIFEST)
        except OSError:
            raise UserError(f"{path}, which {root} was joined from, is missing; restore it or {advice}") from None
        if version != source.version:
            raise UserError(f"{path} was rebuilt since {root} was joined from it; {advice}")
    return tuple(paths)
