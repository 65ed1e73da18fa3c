"""Which test images a run's training already knew: the same pixels, near copies, the same patients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.common.progress import Progress, show_progress
from brain_dist.errors import UserError
from brain_dist.judging.predictions import reasons_text

if TYPE_CHECKING:
    from brain_dist.inference.run import LoadedRun
    from brain_dist.store.dataset import Dataset

SAME_PIXELS, NEAR_COPY = "same pixels", "near copy"
SAME_PATIENT = "same patient"
SAME_GROUP = "same group"  # the image's group has an image that training knew for another reason


def compare_with_training(run: LoadedRun, rows: np.ndarray, *, allow_known: bool) -> dict[str, Any]:
    """Compare the rows [N] of ``run.dataset`` with the images of the training.

    Args:
        run: the run, with the shards to evaluate.
        rows: rows of one split.
        allow_known: whether images that training knew count.

    Returns:
        ``known``, ``not_compared`` and ``allow_known`` of :class:`brain_dist.judging.predictions.Predictions`; empty
        for the shards of the training if its splits share no group.

    Raises:
        UserError: training knew all of the images, and ``allow_known`` is False.
        Fault: a shard is damaged.
    """
    from brain_dist.common.cores import cpu_cores
    from brain_dist.inference.run import open_own_data

    if run.dataset.version == run.trained_version:
        known = known_within(run.dataset, rows, selected=run.config.train.best is not None)
        if not any(known):
            return {}
    else:
        try:
            training = open_own_data(run.path, run.config.data.cache_dir)[1]
        except UserError as error:
            return {"not_compared": str(error), "allow_known": allow_known}
        with show_progress() as progress:
            known = known_images(training, run.dataset, rows, cpu_cores(), progress)
    if not allow_known and all(known):
        raise UserError(
            f"training knew all {len(rows):,} images of {run.dataset.root} ({reasons_text(known)}), so they do not show"
            " how the network does on others; evaluate other shards, or give --allow-known"
        )
    return {"known": known, "allow_known": allow_known}


def known_within(dataset: Dataset, rows: np.ndarray, *, selected: bool) -> np.ndarray:
    """Why training knew images of its own shards: a published split (``--split original``) may divide groups.

    Args:
        dataset: the shards, with the fold selected.
        rows: rows of one split [N].
        selected: whether the checkpoint was selected on the validation split, whose images then count as known, too.

    Returns:
        str [N] (object array): SAME_PIXELS, SAME_PATIENT, SAME_GROUP (a near copy, or a copy of one), or "" if training
        knew no image of the group. Images of the training and validation splits are not compared with their own split.
    """
    splits = ("train", "val") if selected else ("train",)
    trained = np.setdiff1d(np.concatenate([dataset.rows(split) for split in splits]), rows)
    reasons = np.full(len(rows), "", dtype=object)
    columns = (dataset.columns["group"], SAME_GROUP), (_patients(dataset), SAME_PATIENT), (
        dataset.columns["pixel_hash"], SAME_PIXELS)  # fmt: skip
    for column, reason in columns:  # the most specific reason last
        known = set(column[trained]) - {None}
        reasons[[value in known for value in column[rows]]] = reason
    return reasons


def known_images(training: Dataset, other: Dataset, rows: np.ndarray, workers: int, progress: Progress) -> np.ndarray:
    """Why training knew images of other shards.

    Images of the training and the validation split count as known to training. Only images that are not known by
    their pixel hash or their patient are decoded and searched for near copies.

    Args:
        training: the shards of the training, with the fold selected.
        other: other shards.
        rows: rows of ``other`` [N].
        workers: processes that decode images.
        progress: called with (stage, done, total).

    Returns:
        str [N] (object array): SAME_PIXELS, SAME_PATIENT, NEAR_COPY, SAME_GROUP, or "" if training did not know it.

    Raises:
        Fault: a shard is missing or damaged.
    """
    trained = np.concatenate([training.rows("train"), training.rows("val")])
    hashes, patients = set(training.columns["pixel_hash"][trained]), set(_patients(training)[trained])
    reasons = np.full(len(other), "", dtype=object)
    for row, (pixels, patient) in enumerate(zip(other.columns["pixel_hash"], _patients(other), strict=True)):
        if pixels in hashes:
            reasons[row] = SAME_PIXELS
        elif patient is not None and patient in patients:
            reasons[row] = SAME_PATIENT
    unknown = rows[reasons[rows] == ""]
    reasons[unknown[_near_copies(training, trained, other, unknown, workers, progress)]] = NEAR_COPY
    group = other.columns["group"]
    known_groups = set(group[reasons != ""])
    return np.array([reasons[row] or (SAME_GROUP if group[row] in known_groups else "") for row in rows], dtype=object)


def _patients(dataset: Dataset) -> np.ndarray:
    """(dataset, patient) of each image, object [N]; None if the patient is unknown."""
    pairs = np.empty(len(dataset), dtype=object)
    table = zip(dataset.columns["dataset"], dataset.columns["patient"], strict=True)
    pairs[:] = [None if patient is None else (name, patient) for name, patient in table]
    return pairs


def _near_copies(
    training: Dataset, trained: np.ndarray, other: Dataset, rows: np.ndarray, workers: int, progress: Progress
) -> np.ndarray:
    """bool [N]: near copies connect ``rows`` [N] of ``other`` with an image of the rows ``trained`` of ``training``."""
    from brain_dist.copies.search import connected, near_pairs
    from brain_dist.store.reader import read_thumbs

    if not len(rows) or not len(trained):
        return np.zeros(len(rows), dtype=bool)
    _, first = np.unique(training.columns["pixel_hash"][trained].astype(str), return_index=True)
    trained = trained[np.sort(first)]
    thumbs = read_thumbs([(training, trained), (other, rows)], workers, progress)
    pairs = near_pairs(thumbs, lambda done, total: progress("comparing", done, total))
    picture = connected(len(thumbs), np.column_stack([pairs.first, pairs.second]))
    return picture[len(trained) :] < len(trained)  # a picture has the number of its first image
