"""Upload offline W&B runs: ``python -m brain_dist.sync [DIR …]``, where there is a network (a login node).

Compute nodes often have none, so training writes offline runs; this hands them to wandb's own sync, which marks what
it has uploaded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from brain_dist.errors import Fault, UserError, leave
from brain_dist.wandb_log import FINISHED, has_key

QUIET = 600  # seconds without a write after which an attempt that never finished counts as killed


def main(argv: Sequence[str] | None = None) -> int:
    """Find, tell, upload."""
    parser = argparse.ArgumentParser("brain-dist sync", description=__doc__.split("\n\n")[0])
    parser.add_argument("where", nargs="*", type=Path, default=[Path("runs")], metavar="DIR", help="default: runs")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be uploaded")
    arguments = parser.parse_args(argv)
    for where in arguments.where:
        if not where.is_dir():
            raise UserError(f"{where} is not a folder; name a run, or the folder of all runs")
    waiting, busy = find(arguments.where)
    for folder in busy:
        print(f"{folder} is still being written, left for later")
    if not waiting:
        print("nothing to upload")
        return 0
    for folder in waiting:
        print(f"{'would upload' if arguments.dry_run else 'uploading'} {folder}")
    if not arguments.dry_run:
        upload(waiting)
    return 0


def find(where: Sequence[Path]) -> tuple[list[Path], list[Path]]:
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


if __name__ == "__main__":
    leave(main)
