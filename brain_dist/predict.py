"""Predict image files with a trained run, on one process or many.

    brain-dist predict runs/NAME slice.jpg scans/ volume.nii.gz 'more/*.dcm' --out predictions.csv

Reads JPEG, PNG, BMP, TIFF, WebP, GIF, DICOM (also of several frames or without a suffix), NIfTI, MATLAB and .npy files,
in folders, tar and zip archives. A file that cannot be read never stops the others. Exit code: 0; 3 if some files could
not be predicted; 2 if none could, or for a mistake in the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from brain_dist.common.commands import STEP, ArgumentParser, checkpoint_step
from brain_dist.errors import leave
from brain_dist.ranks.world import command_line


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and predict files."""
    about, _, more = __doc__.partition("\n\n")
    parser = ArgumentParser("brain-dist predict", description=about, epilog=more.rpartition("\n\n")[2])
    parser.add_argument("model", type=Path, help="the folder of a run, such as runs/NAME")
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="a file, folder, archive or pattern, or - for a list on standard input"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="table to write: .csv, .json or .parquet (default: print lines)"
    )
    parser.add_argument("--step", type=checkpoint_step, help=STEP)
    parser.add_argument(
        "--slices", default="all", metavar="WHICH",
        help="slices of a file with several: all, middle, or FIRST:END, counted from 0 (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--explain", type=Path, metavar="DIR", help="write a picture for each prediction: where its answer came from"
    )
    parser.add_argument(
        "--sr", type=Path, metavar="DIR", help="write a DICOM Structured Report about each series (DICOM files only)"
    )
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first file that cannot be predicted")
    parser.add_argument(
        "--resume", action="store_true", help="keep what an interrupted prediction with the same arguments has finished"
    )
    parser.add_argument(
        "--batch", dest="micro_batch", metavar="N", type=int, default=32, help="images per forward pass (default: 32)"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS",
        help="without progress for so long, end and report the rank that is stuck (default: 600)",
    )  # fmt: skip
    arguments = vars(parser.parse_args(command_line(argv)))
    folder = arguments.pop("sr")
    from brain_dist.prediction.command import predict

    if folder is None:
        return predict(**arguments)
    from brain_dist.dicomnode.series import report_writer

    return predict(**arguments, reports=report_writer(folder))


if __name__ == "__main__":
    leave(main)
