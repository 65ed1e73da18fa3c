"""Upload offline W&B runs: ``python -m brain_dist.sync [DIR …]``, where there is a network (a login node).

Compute nodes often have none, so training writes offline runs; this hands them to wandb's own sync, which marks what
it has uploaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from brain_dist.errors import UserError, leave
from brain_dist.tracking.upload import find_runs, upload


def main(argv: Sequence[str] | None = None) -> int:
    """Find, tell, upload."""
    parser = argparse.ArgumentParser("brain-dist sync", description=__doc__.split("\n\n")[0])
    parser.add_argument("where", nargs="*", type=Path, default=[Path("runs")], metavar="DIR", help="default: runs")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be uploaded")
    arguments = parser.parse_args(argv)
    for where in arguments.where:
        if not where.is_dir():
            raise UserError(f"{where} is not a folder; name a run, or the folder of all runs")
    waiting, busy = find_runs(arguments.where)
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


if __name__ == "__main__":
    leave(main)
