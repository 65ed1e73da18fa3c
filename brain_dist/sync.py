"""Upload offline W&B runs: ``python -m brain_dist.sync [DIR …]``, on a machine with network access (a login node).

Compute nodes often have no network, so training writes offline runs. This command uploads them with ``wandb sync``,
which marks what it has uploaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from brain_dist.common.commands import ArgumentParser
from brain_dist.errors import leave
from brain_dist.tracking.upload import sync_runs


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and upload runs to W&B."""
    parser = ArgumentParser("brain-dist sync", description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("runs")], metavar="DIR", help="default: runs")
    parser.add_argument("--dry-run", action="store_true", help="only list the runs that would be uploaded")
    arguments = parser.parse_args(argv)
    sync_runs(arguments.folders, dry_run=arguments.dry_run)
    return 0


if __name__ == "__main__":
    leave(main)
