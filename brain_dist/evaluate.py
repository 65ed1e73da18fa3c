"""Evaluate: ``python -m brain_dist.evaluate runs/NAME`` writes predictions/<split>.parquet and its metrics beside it.

Exact over any number of ranks: each sample of the split counts once. Weights are read from safetensors, so a checkpoint
that somebody handed over can't run code here, and neither DeepSpeed nor the number of ranks of the training matters.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brain_dist.errors import UserError, leave
from brain_dist.inference.evaluate import evaluate, print_metrics
from brain_dist.inference.run import NO_TUMOUR, TUMOUR, load_run

if TYPE_CHECKING:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, join the process group, evaluate, write."""
    parser = argparse.ArgumentParser("brain-dist evaluate", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="the run's folder, such as runs/NAME")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="which split (default: test)")
    parser.add_argument("--step", type=_step, help="which checkpoint, or best (default: the newest)")
    parser.add_argument("--shards", help="other shards than the run's own: external validation; needs --name")
    parser.add_argument("--name", help="name of the predictions' files (default: the split)")
    parser.add_argument("--batch", type=int, default=32, help="images a rank at once (default: 32)")
    parser.add_argument("--loader", choices=("dali", "torch"), help="default: the run's own")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )
    arguments, unknown = parser.parse_known_args(argv)
    unknown = [word for word in unknown if not word.startswith(("--local_rank", "--local-rank"))]
    if unknown:
        parser.error(f"unrecognised: {' '.join(unknown)}")
    if arguments.shards and arguments.name in (None, "train", "val", "test"):
        raise UserError("--shards needs a --name of its own, so that it does not overwrite the run's own predictions")
    if arguments.batch < 1:
        raise UserError(f"--batch {arguments.batch}: needs at least 1")

    from brain_dist.ranks.device import choose_device
    from brain_dist.ranks.group import process_group
    from brain_dist.ranks.world import discover

    world = discover()
    device = choose_device(world, arguments.device)
    with process_group(world, device):
        loaded = load_run(arguments.run, step=arguments.step, shards=arguments.shards, device=str(device))
        if arguments.loader:
            data = dataclasses.replace(loaded.config.data, loader=arguments.loader)
            loaded = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, data=data))
        name = arguments.name or arguments.split
        judged = evaluate(loaded, arguments.split, name, micro_batch=arguments.batch, world=world)
        if world.is_main:
            print_metrics(
                judged,
                f"{arguments.run}, {loaded.dataset.manifest['name']}, {arguments.split} split, step {loaded.step}",
            )
            if len(loaded.trained_on) > len(loaded.dataset.classes):
                tumours = ", ".join(name for name in loaded.trained_on if name != NO_TUMOUR)
                print(f"{TUMOUR}: the sum of the probabilities of {tumours}, which these shards do not tell apart")
            print(f"predictions: {arguments.run / 'predictions' / name}.parquet")
    return 0


def _step(word: str) -> int | str:
    if word != "best" and not word.isdigit():
        raise UserError(f"--step {word}: needs a number of optimiser steps, or best")
    return word if word == "best" else int(word)


if __name__ == "__main__":
    leave(main)
