"""Write the report of a run: ``report/index.html``, one self-contained page, and the model card beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from brain_dist.common.files import check_writable, write_together
from brain_dist.errors import Fault, UserError
from brain_dist.judging.examples import confident_errors, typical_hits
from brain_dist.judging.predictions import Predictions
from brain_dist.reporting.card import NAME, render_card, why_no_card
from brain_dist.reporting.page import Slice, render
from brain_dist.reporting.run_files import RunFiles, read_run_files

if TYPE_CHECKING:
    from brain_dist.inference.run import LoadedRun

MISTAKES = 12  # shown on the page
MISTAKES_PER_GROUP = 2  # a dozen slices of one tumour would teach little


class Report(NamedTuple):
    """The files of a report.

    Attributes:
        page: the page.
        card: the model card, or None.
        images_missing: why the page has no images, or None if it has them.
        card_missing: why there is no card, or None if there is one.
    """

    page: Path
    card: Path | None
    images_missing: str | None
    card_missing: str | None


def write_report(run: Path, name: str, predictions: Path | None = None, out: Path | None = None) -> Report:
    """Write the report page of the predictions ``name`` of a run, and the model card of the run.

    Args:
        run: the run's folder.
        name: name of the predictions, a file ``<name>.parquet``.
        predictions: folder of the predictions; None is ``predictions`` in the run's folder.
        out: the page's file, with the card beside it; None writes ``report/index.html`` in the run's folder.

    Raises:
        UserError: the predictions do not exist, a file of the run cannot be read, or the folder is not writable.
        Fault: the disk is full.
    """
    files = read_run_files(run, name, predictions)
    path = out or run / "report" / "index.html"
    if path.parent.is_symlink():  # a run from someone else could lead to any folder
        raise UserError(f"{path.parent} is a symbolic link; remove it, or choose another file with --out")
    check_writable(path.parent, "choose another file with --out")
    mistakes, hits = worst_mistakes(files.predictions), typical_hits(files.predictions)
    slices, missing = _slices(run, files, np.concatenate([mistakes, hits]))
    page = render(files, mistakes, hits, slices, missing)
    no_card = why_no_card(run, files.table)
    written = {path: page.encode()}
    if no_card is None:
        written[path.with_name(NAME)] = render_card(run, name, predictions).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_together(written)
    except OSError as error:
        raise Fault(f"{path} cannot be written ({error.strerror}); choose another file with --out") from None
    return Report(path, path.with_name(NAME) if no_card is None else None, missing, no_card)


def worst_mistakes(predictions: Predictions) -> np.ndarray:
    """Positions [≤ MISTAKES] of the most confident errors, which the page shows."""
    return confident_errors(predictions, MISTAKES_PER_GROUP)[:MISTAKES]


def _slices(run: Path, files: RunFiles, positions: np.ndarray) -> tuple[dict[int, Slice], str | None]:
    """The images at ``positions`` of the predictions table, or none and the reason."""
    if files.dataset is None:
        return {}, files.dataset_missing
    from brain_dist.inference.run import load_run

    predictions = files.predictions
    try:
        loaded = load_run(run, step=predictions.step, shards=predictions.shards)
        return make_slices(loaded, predictions, positions), None
    except UserError as error:
        return {}, str(error)


def make_slices(loaded: LoadedRun, predictions: Predictions, positions: np.ndarray) -> dict[int, Slice]:
    """The images at these positions [M] of the predictions table, by row of the index.

    ``heat`` is None if maps of this network cannot be made.
    """
    from brain_dist.explaining.methods import default_maps

    if len(positions) == 0:
        return {}
    rows = predictions.row[positions].tolist()
    inputs = loaded.images(rows)
    images = loaded.display(inputs)
    try:
        method, maps = default_maps(loaded, inputs, predictions.predicted[positions].tolist(), rows)
    except UserError:
        return {row: Slice(image, None, "") for row, image in zip(rows, images, strict=True)}
    return {row: Slice(image, heat, method) for row, image, heat in zip(rows, images, maps.heat, strict=True)}
