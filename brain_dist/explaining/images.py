"""Which images are explained, and where their tumours are on the network's input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from brain_dist.errors import UserError

if TYPE_CHECKING:
    from brain_dist.inference.run import LoadedRun
    from brain_dist.judging.predictions import Predictions
    from brain_dist.store.dataset import Dataset


def tumour_masks(run: LoadedRun, dataset: Dataset, rows: np.ndarray) -> list[np.ndarray | None]:
    """Where the tumours of the rows [N] are on the network's input, bool [size, size].

    None for an image without a known tumour; nowhere True if its tumour lies outside the input.

    Args:
        run: the run, whose input size and head crop count.
        dataset: its shards, or those of its training.
        rows: rows of the index, int64 [N].
    """
    from brain_dist.augmentation.augment import Frames, no_augmentation
    from brain_dist.store.lesions import read_lesions

    data = run.config.data
    crops = no_augmentation(Frames.of(dataset.columns, head=data.head_crop), rows).crop
    lesions = read_lesions(dataset, rows)
    return [
        lesion.on_input(data.size, crop) if lesion is not None and len(lesion.boxes) else None
        for lesion, crop in zip(lesions, crops, strict=True)
    ]


def spread(group: np.ndarray, limit: int) -> np.ndarray:
    """Ascending positions [≤ limit] of as many groups [N] as possible: one of each group, then a second one of each."""
    seen: dict[str, int] = {}
    turn = []
    for name in group:
        turn.append(seen.get(name, 0))
        seen[name] = turn[-1] + 1
    return np.sort(np.argsort(turn, kind="stable")[:limit])


def choose_images(
    run: LoadedRun, predictions: Predictions, limit: int
) -> tuple[np.ndarray, list[np.ndarray] | None, int]:
    """The images to explain: those with a known tumour, or any if the shards know none.

    Returns:
        Positions in the predictions table [≤ limit]; their masks, bool [size, size], or None if no tumour is known;
        and the number of images whose tumour lies outside the network's input, which are left out.

    Raises:
        UserError: the limit is not positive, or the predictions are empty.
    """
    if limit < 1:
        raise UserError(f"--limit {limit}: must be ≥ 1")
    if not len(predictions):
        raise UserError("these predictions have no images that training did not know")
    masks = tumour_masks(run, run.dataset, predictions.row)
    seen = np.array([mask is not None and mask.any() for mask in masks])
    outside = sum(mask is not None for mask in masks) - int(seen.sum())
    if not seen.any():
        return spread(predictions.group, limit), None, outside
    positions = np.flatnonzero(seen)
    positions = positions[spread(predictions.group[positions], limit)]
    return positions, [mask for i in positions if (mask := masks[i]) is not None], outside


def training_tumours(run: LoadedRun) -> np.ndarray | None:
    """The tumours of the training images on the network's input, bool [M, size, size]; None if none is known."""
    from brain_dist.inference.run import open_own_data

    dataset = run.dataset
    if dataset.version != run.trained_version:
        try:
            dataset = open_own_data(run.path, run.config.data.cache_dir)[1]
        except UserError:
            return None
    masks = [mask for mask in tumour_masks(run, dataset, dataset.rows("train")) if mask is not None and mask.any()]
    return np.stack(masks) if masks else None
