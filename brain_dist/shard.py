"""Verb ``shard``: audit image collections, build shard folders, join and verify them, generate phantoms."""

from __future__ import annotations

from collections.abc import Sequence

from brain_dist.audit.commands import Audit
from brain_dist.building.commands import Build, Join, Verify
from brain_dist.common.commands import Command, parse_command
from brain_dist.errors import leave
from brain_dist.phantom.commands import Phantom

COMMANDS: dict[str, type[Command]] = {
    "build": Build,
    "join": Join,
    "verify": Verify,
    "audit": Audit,
    "phantom": Phantom,
}
EXAMPLES = """\
examples:
  python -m brain_dist.shard build --recipe shards/datasets/cheng.yaml --source DATA/cheng --out shards/built/cheng
  python -m brain_dist.shard build --source MY_IMAGES --out shards/built/mine      (MY_IMAGES/glioma/*.jpg …)
  python -m brain_dist.shard join shards/built/cheng shards/built/mine --out shards/built/both
  python -m brain_dist.shard verify shards/built/cheng
  python -m brain_dist.shard audit DATA/cheng DATA/nickparvar --out audits/both
  python -m brain_dist.shard phantom --out DATA/phantom --patients 60 --slices 10
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    description = "Turn image collections into audited, grouped, split and checksummed WebDataset shards."
    return parse_command("python -m brain_dist.shard", description, COMMANDS, argv, epilog=EXAMPLES).run()


if __name__ == "__main__":
    leave(main)
