"""The manifest, ``manifest.json``: what a shard folder holds. Written last; its sha256 is the dataset version."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.errors import UserError

if TYPE_CHECKING:
    pass


FORMAT = 1


MANIFEST = "manifest.json"


SOURCES = "sources.json"  # of a joined folder: where the shard folders lie whose images it names


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
