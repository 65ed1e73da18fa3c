"""The format of a checkpoint: names of files, the marker that completes it, and its verification.

A checkpoint is a folder ``checkpoints/<step>/``, named by the number of optimiser steps that are done (8 digits):

==================================== ==================================================================================
file                                 content
==================================== ==================================================================================
``model.safetensors``                weights in the precision that they compute in, and buffers
``ema.safetensors``                  averaged weights and buffers in fp32, only with ``optim.ema``; metadata ``updates``
``optimizer-R-of-W.safetensors``     fp32 weights and Adam's moments that rank R of W updates, as pieces of named
                                     parameters (:mod:`brain_dist.training.fragments`); a tensor's name is
                                     ``<parameter>:<kind>:<first element>`` (:func:`fragment_key`)
``COMPLETE``                         JSON with ``step``, ``counters`` (optimiser steps, fp16 loss scale, skipped steps),
                                     ``facts`` (the settings that must match on resume), ``evaluations`` (step and
                                     metrics of each validation up to this step) and ``files`` (size and sha256 of each
                                     file above); then the sha256 of the JSON text. Written last.
==================================== ==================================================================================

A folder without ``COMPLETE`` is not a checkpoint. No file is a pickle. Any number of ranks can read a checkpoint.
:mod:`brain_dist.training.saving` writes checkpoints, :mod:`brain_dist.training.restoring` reads them.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from brain_dist.common.files import sha256_bytes, sha256_file
from brain_dist.errors import Fault

MARKER, MODEL, EMA = "COMPLETE", "model.safetensors", "ema.safetensors"


def checkpoint_folder(root: Path, step: int) -> Path:
    """Folder of the checkpoint after ``step`` optimiser steps."""
    return root / f"{step:08d}"


def optimizer_file(rank: int, world_size: int) -> str:
    """Name of the file with the optimiser state of ``rank``."""
    return f"optimizer-{rank:05d}-of-{world_size:05d}.safetensors"


def fragment_key(name: str, kind: str, start: int) -> str:
    """Name of a fragment's tensor in an optimiser file. Parameter names contain no colon."""
    return f"{name}:{kind}:{start}"


def complete_steps(root: Path) -> list[int]:
    """Steps of all complete checkpoints, oldest first. Their files are not verified."""
    if not root.is_dir():
        return []
    return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit() and (p / MARKER).is_file())


def encode_marker(content: dict[str, Any]) -> bytes:
    """The bytes of COMPLETE: ``content`` as JSON, then the sha256 of that text."""
    text = json.dumps(content, indent=1).encode() + b"\n"
    return text + sha256_bytes(text).encode() + b"\n"


def read_marker(path: Path) -> dict[str, Any]:
    """The content of COMPLETE in the checkpoint folder ``path``: step, counters, facts, files.

    Raises:
        OSError: the file can't be read.
        ValueError: the file is damaged.
    """
    text, _, digest = (path / MARKER).read_bytes().rstrip(b"\n").rpartition(b"\n")
    text += b"\n"
    if sha256_bytes(text).encode() != digest:
        raise ValueError("it does not match its own checksum")
    return json.loads(text)


def verify_checkpoint(path: Path, only: str | None = None) -> list[str]:
    """Compare the files of a complete checkpoint with the sizes and checksums in COMPLETE.

    Args:
        path: the checkpoint's folder.
        only: name of the one file whose checksum is verified. Only the sizes of the others are.

    Returns:
        One line per damaged or missing file; empty if the checkpoint is intact.
    """
    try:
        files = read_marker(path)["files"]
        hashed = files if only is None else {only: files[only]}
    except (OSError, ValueError, KeyError) as error:
        return [f"{path / MARKER} is unreadable ({error or type(error).__name__})"]

    def verify(name: str) -> str | None:
        return _verify_file(path / name, files[name]["size"], files[name]["sha256"] if name in hashed else None)

    with ThreadPoolExecutor(4) as pool:
        return [problem for problem in pool.map(verify, files) if problem]


def intact_weights(folder: Path, *, averaged: bool = True) -> Path:
    """The file of weights of the checkpoint ``folder``, whose checksum is verified.

    Args:
        folder: the checkpoint's folder.
        averaged: the moving average of the weights, if the checkpoint has one.

    Raises:
        Fault: the checkpoint is damaged.
    """
    try:
        name = EMA if averaged and EMA in read_marker(folder)["files"] else MODEL
    except (OSError, ValueError, KeyError):
        name = MODEL  # verify_checkpoint says what is damaged
    problems = verify_checkpoint(folder, only=name)
    if problems:
        raise Fault(problems[0])
    return folder / name


def _verify_file(file: Path, size: int, sha256: str | None) -> str | None:
    if not file.is_file():
        return f"{file} is missing"
    if file.stat().st_size != size:
        return f"{file} has {file.stat().st_size} bytes instead of {size}"
    return None if sha256 is None or sha256_file(file) == sha256 else f"{file} does not match its checksum"
