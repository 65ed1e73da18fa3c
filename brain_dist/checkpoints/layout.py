"""Checkpoints that are either complete and verified, or not there; readable on any number of ranks.

``checkpoints/<step>/`` holds ``model.safetensors`` (the weights as they compute, and buffers), ``ema.safetensors``
where there is an average, ``optimizer-R-of-W.safetensors`` (the fp32 weights and moments that rank R held, as
:mod:`brain_dist.training.fragments` of named parameters) and ``COMPLETE``: step, counters, the run's facts, size and
sha256 of every file; written last. :mod:`brain_dist.training.saving` writes them. Nothing here is a pickle.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.common.files import sha256_file

if TYPE_CHECKING:
    pass


MARKER, MODEL, EMA = "COMPLETE", "model.safetensors", "ema.safetensors"


def checkpoint_folder(root: Path, step: int) -> Path:
    """Folder of the checkpoint taken before ``step`` (that many optimiser steps are done)."""
    return root / f"{step:08d}"


def optimizer_file(rank: int, world: int) -> str:
    """Name of the file with the fragments that ``rank`` held."""
    return f"optimizer-{rank:05d}-of-{world:05d}.safetensors"


def fragment_key(name: str, kind: str, start: int) -> str:
    """Name of a fragment's tensor in its file; parameters' names hold no colon."""
    return f"{name}:{kind}:{start}"


def complete_steps(root: Path) -> list[int]:
    """Steps of all checkpoints that were completed, oldest first."""
    if not root.is_dir():
        return []
    return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit() and (p / MARKER).is_file())


def marker_text(about: dict[str, Any]) -> bytes:
    """The text of COMPLETE: JSON, and its own checksum in the last line."""
    body = json.dumps(about, indent=1).encode() + b"\n"
    return body + hashlib.sha256(body).hexdigest().encode() + b"\n"


def read_marker(path: Path) -> dict[str, Any]:
    """What COMPLETE says of a checkpoint: step, counters, facts, files. ValueError where its text is damaged."""
    body, _, digest = (path / MARKER).read_bytes().rstrip(b"\n").rpartition(b"\n")
    body += b"\n"
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError("it does not match its own checksum")
    return json.loads(body)


def verify_checkpoint(path: Path, only: str | None = None) -> list[str]:
    """What is wrong with a completed checkpoint: a line a damaged or missing file, nothing if all is well.

    ``only`` names the one file that matters; the others are not read.
    """
    try:
        files = read_marker(path)["files"]
        files = files if only is None else {only: files[only]}
    except (OSError, ValueError, KeyError) as error:
        return [f"{path / MARKER} is unreadable ({error or type(error).__name__})"]

    def check(item: tuple[str, dict[str, Any]]) -> str | None:
        name, said = item
        file = path / name
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != said["size"]:
            return f"{file} has {file.stat().st_size} bytes instead of {said['size']}"
        return None if sha256_file(file) == said["sha256"] else f"{file} does not match its checksum"

    with ThreadPoolExecutor(4) as pool:
        return [problem for problem in pool.map(check, files.items()) if problem]
