"""The manifest, ``manifest.json``: what a shard folder contains. Written last; its sha256 is the dataset version."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from brain_dist.common.files import sha256_bytes
from brain_dist.errors import UserError
from brain_dist.store.options import BuildOptions

FORMAT = 1
MANIFEST = "manifest.json"
SOURCES = "sources.json"  # in a joined folder: paths or URLs of the shard folders that it was joined from


@dataclass(frozen=True)
class ShardEntry:
    """A shard, or the file of the masks: file name, sha256 (hex) and bytes of the file, number of samples."""

    name: str
    sha256: str
    size: int
    samples: int


@dataclass(frozen=True)
class SourceEntry:
    """A shard folder that a joined folder was made from: its name and its dataset version."""

    name: str
    version: str


@dataclass(frozen=True)
class Excluded:
    """Images that are in no split: how many, how many by dataset and class (or source and split), keys."""

    samples: int
    counts: dict[str, dict[str, int]]
    keys: list[str]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the manifests of built and joined folders have in common.

    Attributes:
        format: version of the format, :data:`FORMAT`.
        name: name of the dataset.
        classes: class names; a label is a position in this list.
        counts: split → class → number of samples.
        samples: number of samples.
        groups: number of groups: sets of images that share a patient or show the same picture.
        split: how the groups were split; ``method`` is always there.
        title, source, licence, citation: where the images come from.
        excluded: images that were left out because a test image shares their group.
        audit: numbers of copies, of leaks and of images with contradicting labels.
        shards: the shards, in the order of their names.
        index_sha256: sha256 (hex) of the index.
        builder: version of this program.
    """

    format: int
    name: str
    classes: list[str]
    counts: dict[str, dict[str, int]]
    samples: int
    groups: int
    split: dict[str, Any]
    title: str
    source: str
    licence: str
    citation: str
    excluded: Excluded
    audit: dict[str, Any]
    shards: list[ShardEntry]
    index_sha256: str
    builder: str

    # Order of the keys in the file. It decides the bytes, and therefore the dataset version.
    keys: ClassVar[tuple[str, ...]]

    def to_bytes(self) -> bytes:
        """Content of ``manifest.json``."""
        entries = asdict(self)
        document = {key: entries[key] for key in self.keys if entries[key] is not None}
        return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True, kw_only=True)
class BuiltManifest(Manifest):
    """Manifest of a folder that was built from images.

    Attributes:
        recipe: the recipe, as JSON.
        options: the :class:`~brain_dist.store.options.BuildOptions`, as JSON.
        source_listing_sha256: sha256 (hex) of the list of source files with their sizes, labels and patients.
        skipped: damaged and blank images that were left out: their ``source`` and the ``reason``.
        masks: the file of the masks, whose samples are those with a mask; None if there are none.
    """

    recipe: dict[str, Any]
    options: dict[str, Any]
    source_listing_sha256: str
    skipped: list[dict[str, str]]
    masks: ShardEntry | None = None

    keys = (
        "format", "name", "classes", "counts", "samples", "groups", "title", "source", "licence", "citation", "recipe",
        "options", "source_listing_sha256", "split", "excluded", "audit", "skipped", "shards", "masks",
        "index_sha256", "builder",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class JoinedManifest(Manifest):
    """Manifest of a folder that joins others; ``shards`` are named ``NUMBER/NAME.tar``, by the number of the source.

    Attributes:
        sources: the joined folders.
    """

    sources: list[SourceEntry]

    keys = (
        "format", "classes", "counts", "samples", "groups", "name", "sources", "split", "title", "source", "licence",
        "citation", "excluded", "audit", "shards", "index_sha256", "builder",
    )  # fmt: skip


def load_manifest(root: Path) -> tuple[Manifest, str]:
    """Read the manifest of a shard folder.

    Returns:
        The manifest and the dataset version (the sha256 of the manifest).

    Raises:
        UserError: the folder is incomplete or the manifest is malformed.
    """
    try:
        data = (root / MANIFEST).read_bytes()
    except OSError:
        raise UserError(
            f"{root} is not a complete shard folder (no {MANIFEST}); build one with "
            "`python -m brain_dist.shard build --source FOLDER --out FOLDER`"
        ) from None
    return parse_manifest(data, str(root / MANIFEST)), sha256_bytes(data)


def parse_manifest(data: bytes, place: str) -> Manifest:
    """Bytes of ``manifest.json`` → :class:`BuiltManifest` or :class:`JoinedManifest`.

    Raises:
        UserError: not JSON, another format version, or an entry that is missing or malformed; ``place`` names the file.
    """
    from pydantic import TypeAdapter, ValidationError

    advice = "copy or build the shard folder again"
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise UserError(f"{place} is not valid JSON; {advice}") from None
    version = document.get("format") if isinstance(document, dict) else None
    if version != FORMAT:
        raise UserError(f"{place} has format version {version!r}, this program reads {FORMAT}; build it again")
    schema: type[Manifest] = JoinedManifest if "sources" in document else BuiltManifest
    try:
        manifest = TypeAdapter(schema).validate_json(data, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        entry = ".".join(map(str, problem["loc"])) or "content"
        raise UserError(f"{place}: {entry}: {problem['msg']}; {advice}") from None
    options = manifest.options if isinstance(manifest, BuiltManifest) else {}
    unknown = sorted(set(options) - {option.name for option in fields(BuildOptions)})
    if unknown:
        raise UserError(f"{place}: options.{unknown[0]} is not an option of a build; {advice}")
    if "method" not in manifest.split:
        raise UserError(f"{place}: split.method is missing; {advice}")
    for split, numbers in manifest.counts.items():
        if set(numbers) != set(manifest.classes):
            raise UserError(f"{place}: counts.{split} does not list the classes; {advice}")
    return manifest


def count_classes(
    splits: np.ndarray, labels: np.ndarray, names: Sequence[str], classes: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Split → class → number of samples, from the split (object [N]) and the label (int [N]) of each sample."""
    return {
        name: {
            class_name: int(((splits == name) & (labels == label)).sum()) for label, class_name in enumerate(classes)
        }
        for name in names
    }


def recorded_sources(root: Path) -> list[str]:
    """Paths or URLs of the sources of a joined folder; a path that is gone is looked for beside the folder.

    Raises:
        UserError: the record is missing or damaged.
    """
    try:
        paths = json.loads((root / SOURCES).read_bytes())
        recorded = [str(path) for path in paths]
    except (OSError, ValueError, TypeError):
        raise UserError(f"{root / SOURCES} is missing or damaged; join the folders again") from None
    beside = [root.resolve().parent / Path(path).name for path in recorded]
    return [
        str(moved) if "://" not in path and not Path(path).exists() and moved.exists() else path
        for path, moved in zip(recorded, beside, strict=True)
    ]
