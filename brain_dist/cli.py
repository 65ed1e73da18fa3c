"""The console script: ``brain-dist COMMAND …`` is the same as ``python -m brain_dist.COMMAND …``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from brain_dist import __version__
from brain_dist.common.text import nearest
from brain_dist.errors import UserError, leave

COMMANDS = {
    "shard": "build verified shards without leaks from collections (build, verify, join, audit, phantom)",
    "train": "train a classifier on shards, on one process or many",
    "evaluate": "predict a split, each sample exactly once, and compute the metrics",
    "predict": "predict any image files: JPEG, PNG, TIFF, DICOM, NIfTI, arrays, folders, archives",
    "dicom": "receive MR series from scanners or a PACS, and send a Structured Report about each (listen)",
    "export": "write a run's network in other formats (Hugging Face, ONNX, web page, …), compared with the run",
    "serve": "answer over HTTP, with a page: upload an image, get probabilities, set of classes, verdict",
    "adopt": "read the predictions of any model, to judge them like a run's own",
    "calibrate": "calibrate probabilities on validation images, and make sets of classes with a known coverage",
    "outliers": "fit a detector of images that are not like the training images, for predict",
    "shortcut": "measure how well the label can be guessed without looking at the disease",
    "benchmark": "train and judge several models under the same conditions (run, cross, probe, table, page, costs)",
    "compare": "compare models on the same images, patient by patient",
    "explain": "show what a run looked at, and measure these maps against known tumours",
    "report": "write one self-contained HTML page about a run",
    "profile": "measure where a training step spends its time, and what to change",
    "scaling": "measure or predict the speed of a training step on several nodes (run, predict)",
    "sync": "upload offline W&B runs from a machine with network access",
    "weights": "cache ImageNet weights on a machine with network access",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Call the command's own ``main``.

    Raises:
        UserError: an unknown command.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        commands = "\n".join(f"  {name:10} {purpose}" for name, purpose in COMMANDS.items())
        print(f"usage: brain-dist COMMAND [...]\n\ncommands (each has --help):\n{commands}")
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    if arguments[0] not in COMMANDS:
        hint = nearest(arguments[0], COMMANDS)
        raise UserError(f"unknown command {arguments[0]!r}{hint}; choose from {', '.join(COMMANDS)}")
    return int(importlib.import_module(f"brain_dist.{arguments[0]}").main(arguments[1:]))


def entry() -> None:
    """The entry point of the console script."""
    leave(main)


if __name__ == "__main__":
    entry()
