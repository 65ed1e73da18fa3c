"""Adopt the predictions of any model, so that they are judged like a run's own.

    python -m brain_dist.adopt PREDICTIONS --shards DIR

PREDICTIONS is a CSV or Parquet file with the key of each image and a probability for each class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from brain_dist.common.commands import ArgumentParser
from brain_dist.errors import leave


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, write the predictions table and its metrics, and print them."""
    parser = ArgumentParser("brain-dist adopt", description=__doc__.split("\n\n")[0])
    parser.add_argument("predictions", type=Path, help="CSV or Parquet file: the key of each image, its probabilities")
    parser.add_argument("--shards", required=True, help="shard folder of the images")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="which split (default: test)")
    parser.add_argument("--fold", type=int, metavar="N", help="the test fold, for shards built with --split kfold")
    parser.add_argument(
        "--columns",
        metavar="KEY,P1,…",
        help="names of the column of keys and of one column for each class, in the shards' order of classes (default:"
        " key or source, and prob_CLASS or CLASS)",
    )
    parser.add_argument("--run", type=Path, metavar="DIR", help="folder to write (default: runs/ and the file's name)")
    parser.add_argument("--name", help="name of the table (default: the split)")
    arguments = parser.parse_args(argv)
    from brain_dist.judging.adopt import adopt_file

    adopt_file(**vars(arguments))
    return 0


if __name__ == "__main__":
    leave(main)
