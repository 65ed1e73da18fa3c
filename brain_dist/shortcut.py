"""Measure how well the label can be guessed without looking at the disease."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from brain_dist.common.commands import ArgumentParser
from brain_dist.errors import leave


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and report the shortcut baselines."""
    parser = ArgumentParser(
        "brain-dist shortcut",
        description="Measure how well the label can be guessed without looking at the disease: from the most frequent"
        " class, from file properties, and from image borders. Trained on split train, scored on split test.",
    )
    parser.add_argument("shards", help="shard folder made by `python -m brain_dist.shard build`")
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write the result to this file")
    parser.add_argument(
        "--fold",
        type=int,
        metavar="N",
        help="fold to test on (shards built with --split kfold); the next fold is left out, the others are trained on",
    )
    arguments = parser.parse_args(argv)
    from brain_dist.judging.shortcuts import report_shortcuts

    report_shortcuts(arguments.shards, arguments.fold, arguments.json)
    return 0


if __name__ == "__main__":
    leave(main)
