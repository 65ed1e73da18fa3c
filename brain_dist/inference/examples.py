"""A few validation images with their predictions, for W&B."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from brain_dist.judging.examples import Example, choose_examples

if TYPE_CHECKING:
    import torch

    from brain_dist.config import Config
    from brain_dist.judging.predictions import Predictions
    from brain_dist.store.dataset import Dataset
    from brain_dist.stream.normalize import Normalize


def make_examples(
    predictions: Predictions, dataset: Dataset, config: Config, normalize: Normalize, device: torch.device
) -> list[Example]:
    """The ``track.examples`` most informative images of an evaluation; on one rank only."""
    from brain_dist.stream.batches import evaluation_batches

    positions = choose_examples(predictions, config.track.examples)
    rows = predictions.row[positions]
    images: dict[int, np.ndarray] = {}
    for batch in evaluation_batches(config.data, dataset, rows, micro_batch=len(rows), device=device):
        gray = normalize.to_gray(normalize(batch.image))
        images.update(zip(batch.row[batch.valid].tolist(), gray[batch.valid.cpu().numpy()], strict=True))
    return [
        Example(
            image=images[int(predictions.row[i])],
            key=str(predictions.key[i]),
            true=predictions.classes[predictions.label[i]],
            predicted=predictions.classes[predictions.predicted[i]],
            probability=float(predictions.prob[i].max()),
        )
        for i in positions
    ]
