"""Fit the detector of images that are not like the training images, which prediction uses for its verdict.

    brain-dist outliers runs/NAME

Writes outliers.safetensors in the run's folder, which `brain-dist predict` reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from brain_dist.common.commands import STEP, ArgumentParser, checkpoint_step
from brain_dist.errors import leave


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and fit the detector of a run."""
    parser = ArgumentParser("brain-dist outliers", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="the run's folder, such as runs/NAME")
    parser.add_argument(
        "--method",
        default="auto",
        help="mahalanobis, knn, knn_normalised, energy, msp (default: the best on made-up outliers)",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        default=0.02,
        help="wanted share of false alarms among images like the training's (default: 0.02)",
    )
    parser.add_argument(
        "--limit", type=int, default=2000, metavar="N", help="most training images to fit on (default: %(default)s)"
    )
    parser.add_argument("--step", type=checkpoint_step, help=STEP)
    parser.add_argument("--shards", help="where the run's own shards are now")
    parser.add_argument(
        "--batch", dest="micro_batch", metavar="N", type=int, default=32, help="images per forward pass (default: 32)"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )
    arguments = parser.parse_args(argv)
    from brain_dist.ood.build import fit_outliers

    fit_outliers(**vars(arguments))
    return 0


if __name__ == "__main__":
    leave(main)
