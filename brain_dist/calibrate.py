"""Calibrate a run on its validation images, and judge the calibration on its other predictions.

    python -m brain_dist.calibrate runs/NAME

Writes calibration.json, which prediction reads, and report/calibration.html. Reads only predictions tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from brain_dist.common.commands import ArgumentParser
from brain_dist.errors import leave


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and calibrate a run."""
    parser = ArgumentParser("brain-dist calibrate", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="the run's folder, such as runs/NAME")
    parser.add_argument("--fit", default="val", help="predictions of validation images to fit on (default: val)")
    parser.add_argument("--judge", metavar="NAME,…", help="predictions to judge by (default: all others of this step)")
    parser.add_argument(
        "--alpha", type=float, default=0.1, help="wanted share of sets without the true class (default: 0.1)"
    )
    parser.add_argument(
        "--by", metavar="COLUMN,…", help="compare subgroups by these columns of the index or keys of its attributes"
    )
    arguments = parser.parse_args(argv)
    from brain_dist.reporting.calibrate import calibrate

    calibrate(
        arguments.run,
        fit=arguments.fit,
        judge=arguments.judge.split(",") if arguments.judge else None,
        alpha=arguments.alpha,
        by=arguments.by.split(",") if arguments.by else [],
    )
    return 0


if __name__ == "__main__":
    leave(main)
