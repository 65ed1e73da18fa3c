"""Upload offline W&B runs from a machine with network access."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from brain_dist.errors import Fault, UserError
from brain_dist.tracking.wandb_log import FINISHED, has_key

QUIET = 600  # seconds without a write after which an attempt that never finished counts as killed


def find_runs(where: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Offline runs below ``where`` that wait for an upload, oldest first, and those that are still being written."""
    waiting: list[Path] = []
    busy: list[Path] = []
    found = {file.parent.resolve(): file for folder in where for file in folder.rglob("offline-run-*/run-*.wandb")}
    for file in sorted(found.values(), key=lambda file: file.parent.name):
        if synced(file.parent):
            continue
        # a killed one never gets to its marker
        ended = (file.parent / FINISHED).exists() or time.time() - file.stat().st_mtime > QUIET
        (waiting if ended else busy).append(file.parent)
    return waiting, busy


def synced(folder: Path) -> bool:
    """Whether wandb marked the run as uploaded."""
    return any(folder.glob("*.wandb.synced"))


def upload(folders: Sequence[Path]) -> None:
    """Hand runs to ``wandb sync``.

    Raises:
        UserError: no account to upload to.
        Fault: wandb did not bring all of them up; those that it did are marked and are not uploaded again.
    """
    if not has_key():
        raise UserError("no W&B account: run `wandb login`, or set WANDB_API_KEY (and WANDB_BASE_URL for a server)")
    done = subprocess.run([sys.executable, "-m", "wandb", "sync", *map(str, folders)], check=False)
    missing = [folder for folder in folders if not synced(folder)]
    if done.returncode or missing:
        raise Fault(
            f"wandb sync left {len(missing)} of {len(folders)} runs behind, the first is {(missing or folders)[0]};"
            " the same command goes on with them"
        )
    print(f"{len(folders)} uploaded")
