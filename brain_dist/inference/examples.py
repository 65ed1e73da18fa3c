"""A few validation images with what the network said of them: its surest errors, then its least sure hits."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    """The ``track.examples`` most telling images of an evaluation; for one rank alone."""
    from brain_dist.stream.batches import evaluation_batches

    chosen = choose_examples(predictions, config.track.examples)
    rows = predictions.row[chosen]
    made = []
    for batch in evaluation_batches(config.data, dataset, rows, micro_batch=len(rows), device=device):
        pictures = normalize.to_gray(normalize(batch.image))
        made += list(zip(batch.row[batch.valid].tolist(), pictures[batch.valid.cpu().numpy()], strict=True))
    images = dict(made)
    return [
        Example(
            images[int(predictions.row[at])],
            str(predictions.key[at]),
            predictions.classes[predictions.label[at]],
            predictions.classes[predictions.predicted[at]],
            float(predictions.prob[at].max()),
        )
        for at in chosen
    ]
