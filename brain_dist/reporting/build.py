"""Write the report of a run: ``report/index.html``, one self-contained page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brain_dist.common.files import write_atomically
from brain_dist.errors import UserError
from brain_dist.judging.examples import confident_errors, typical_hits
from brain_dist.judging.predictions import Predictions
from brain_dist.reporting.images import Slice, make_slices
from brain_dist.reporting.run_files import RunFiles, read_run_files

MISTAKES = 12  # shown on the page
MISTAKES_PER_GROUP = 2  # a dozen slices of one tumour would teach little


@dataclass(frozen=True)
class Report:
    """A written report: its file, and why it has no images (None if it has them)."""

    path: Path
    images_missing: str | None


def write_report(run: Path, name: str, out: Path | None = None) -> Report:
    """Write the report page of the predictions ``name`` of a run.

    Args:
        run: the run's folder.
        name: name of the predictions, a file ``predictions/<name>.parquet``.
        out: file to write; None writes ``report/index.html`` in the run's folder.

    Raises:
        UserError: the predictions do not exist, or a file of the run cannot be read.
    """
    from brain_dist.reporting.page import render

    files = read_run_files(run, name)
    mistakes, hits = worst_mistakes(files.predictions), typical_hits(files.predictions)
    slices, missing = _slices(run, files, np.concatenate([mistakes, hits]))
    page = render(files, mistakes, hits, {one.row: one for one in slices}, missing)
    path = out or run / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return Report(path, missing)


def worst_mistakes(predictions: Predictions) -> np.ndarray:
    """Positions [≤ MISTAKES] of the most confident errors, which the page shows."""
    return confident_errors(predictions, MISTAKES_PER_GROUP)[:MISTAKES]


def _slices(run: Path, files: RunFiles, positions: np.ndarray) -> tuple[list[Slice], str | None]:
    """The images at ``positions`` of the predictions table, or none and the reason."""
    if files.dataset is None:
        return [], files.dataset_missing
    from brain_dist.inference.run import load_run

    predictions = files.predictions
    try:
        loaded = load_run(run, step=predictions.step, shards=predictions.shards)
        return make_slices(loaded, predictions, positions), None
    except UserError as error:
        return [], str(error)
