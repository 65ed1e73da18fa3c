"""Keep the images of a dataset that share no picture and no patient with the other datasets of the same shards.

    python -m benchmarks.other_origin BUILT --source DIR --dataset nickparvar --out FOLDER

BUILT was built from DIR with a recipe of several datasets, such as cheng_br35h_nickparvar. FOLDER gets a folder per
class with links to those of the dataset's images whose group has images of no other dataset. Build it with
``shard build --source FOLDER --split test``: a collection to test on, of another origin than the other datasets.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brain_dist.errors import UserError, leave
from brain_dist.store.dataset import open_dataset


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and link the images; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.other_origin", description=__doc__.partition("\n")[0])
    parser.add_argument("built", type=Path, help="shards of several datasets")
    parser.add_argument("--source", type=Path, required=True, help="the folder that they were built from")
    parser.add_argument("--dataset", required=True, help="the dataset whose images are kept")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    arguments = parser.parse_args(argv)
    dataset = open_dataset(arguments.built)
    columns = dataset.columns
    own = columns["dataset"] == arguments.dataset
    if not own.any() or own.all():
        raise UserError(
            f"--dataset {arguments.dataset}: {arguments.built} has {', '.join(sorted(set(columns['dataset'])))}"
        )
    if arguments.out.exists():
        raise UserError(f"--out {arguments.out} exists; choose another folder, or remove it")
    kept = np.flatnonzero(own & ~np.isin(columns["group"].astype(str), columns["group"][~own].astype(str)))
    for row in kept.tolist():
        source = (arguments.source / columns["source"][row]).resolve()
        if not source.is_file():
            raise UserError(
                f"{source} does not exist; --source must be the folder that {arguments.built} was built from"
            )
        folder = arguments.out / dataset.classes[columns["label"][row]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{row}{source.suffix}").symlink_to(source)
    labels = columns["label"][kept]
    counts = ", ".join(f"{name} {np.sum(labels == label)}" for label, name in enumerate(dataset.classes))
    print(f"{len(kept):,} of {own.sum():,} images are of other origin: {counts}")
    return 0


if __name__ == "__main__":
    leave(main)
