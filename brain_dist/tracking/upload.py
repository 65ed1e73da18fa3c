"""Upload offline W&B runs from a machine with network access."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from brain_dist.errors import Fault, UserError
from brain_dist.tracking.wandb_log import FINISHED, has_key

IDLE_LIMIT = 600  # seconds without a write after which an unfinished attempt counts as killed


def sync_runs(folders: Sequence[Path], *, dry_run: bool) -> None:
    """Upload the offline W&B runs below ``folders``; with ``dry_run`` only print them.

    Raises:
        UserError: a folder is missing, or there is no W&B account.
        Fault: ``wandb sync`` did not upload all runs.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give the folder of a run, or of all runs")
    waiting, active = _find_runs(folders)
    for run in active:
        print(f"{run} is still being written; skipped")
    if not waiting:
        print("nothing to upload")
        return
    for run in waiting:
        print(f"{'would upload' if dry_run else 'uploading'} {run}")
    if not dry_run:
        _upload(waiting)


def _find_runs(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Offline runs that wait for an upload, and those that are still being written; oldest first."""
    files = {file.parent.resolve(): file for folder in folders for file in folder.rglob("offline-run-*/run-*.wandb")}
    waiting: list[Path] = []
    active: list[Path] = []
    for file in sorted(files.values(), key=lambda file: file.parent.name):
        if _is_synced(file.parent):
            continue
        # an attempt that was killed has no marker
        ended = (file.parent / FINISHED).exists() or time.time() - file.stat().st_mtime > IDLE_LIMIT
        (waiting if ended else active).append(file.parent)
    return waiting, active


def _is_synced(run: Path) -> bool:
    """Whether wandb marked the run as uploaded."""
    return any(run.glob("*.wandb.synced"))


def _upload(runs: Sequence[Path]) -> None:
    """Upload runs with ``wandb sync``, which marks the uploaded ones; they are skipped the next time."""
    os.environ.pop("WANDB_MODE", None)  # of the trainings; an upload is online
    if not has_key():
        raise UserError("no W&B account: run `wandb login`, or set WANDB_API_KEY (and WANDB_BASE_URL for a server)")
    result = subprocess.run([sys.executable, "-m", "wandb", "sync", *map(str, runs)], check=False)
    missing = [run for run in runs if not _is_synced(run)]
    if result.returncode or missing:
        raise Fault(
            f"wandb sync did not upload {len(missing)} of {len(runs)} runs, the first is {(missing or runs)[0]};"
            " repeat the command to continue"
        )
    print(f"{len(runs)} uploaded")
