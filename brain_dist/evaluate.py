"""Evaluate a run: ``python -m brain_dist.evaluate runs/NAME`` writes predictions/<split>.parquet and its metrics.

Exact over any number of ranks: each sample of the split counts once. Weights are read from safetensors, so no code of a
checkpoint runs. Neither DeepSpeed nor the number of ranks of the training matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from brain_dist.common.commands import STEP, ArgumentParser, checkpoint_step
from brain_dist.errors import leave
from brain_dist.inference.evaluate import evaluate
from brain_dist.ranks.world import command_line


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and evaluate a run."""
    parser = ArgumentParser("brain-dist evaluate", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="the run's folder, such as runs/NAME")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="which split (default: test)")
    parser.add_argument("--step", type=checkpoint_step, help=STEP)
    parser.add_argument(
        "--shards",
        help="other shards than the run's own, with --name, for external validation; or where its own are now",
    )
    parser.add_argument(
        "--cache-dir", metavar="DIR",
        help="folder on this node's disk to copy the shards to, or off (default: $SLURM_TMPDIR if set, else off)",
    )  # fmt: skip
    parser.add_argument(
        "--allow-known", action="store_true",
        help="count images that training knew, too: the same pixels, near copies, the same patients; of --shards, or of"
        " shards with a published split (default: they are reported apart)",
    )  # fmt: skip
    parser.add_argument("--name", help="name of the output files (default: the split)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write (default: RUN/predictions)")
    parser.add_argument(
        "--batch",
        dest="micro_batch",
        metavar="N",
        type=int,
        default=32,
        help="images per rank and forward pass (default: 32)",
    )
    parser.add_argument("--loader", choices=("dali", "opencv", "torch"), help="default: the run's own")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS",
        help="without progress for so long, end and report the rank that is stuck (default: 600)",
    )  # fmt: skip
    evaluate(**vars(parser.parse_args(command_line(argv))))
    return 0


if __name__ == "__main__":
    leave(main)
