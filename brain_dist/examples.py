"""A few validation images with what the network said of them: its surest errors, then its least sure hits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from brain_dist.config import Config
    from brain_dist.data.index import Dataset
    from brain_dist.loaders.batch import Finish
    from brain_dist.predictions import Predictions


@dataclass(frozen=True)
class Example:
    """``image`` uint8 [H, W] as the network saw it; ``probability`` of the ``predicted`` class."""

    image: np.ndarray
    key: str
    true: str
    predicted: str
    probability: float


def choose(predictions: Predictions, count: int) -> np.ndarray:
    """Positions of the ``count`` most telling predictions: errors by falling probability, then hits by rising one."""
    wrong = predictions.predicted != predictions.label
    sure = predictions.prob.max(axis=1)
    return np.lexsort((np.where(wrong, -sure, sure), ~wrong))[:count]


def examples(
    predictions: Predictions, dataset: Dataset, config: Config, finish: Finish, device: torch.device
) -> list[Example]:
    """The ``track.examples`` most telling images of an evaluation; for one rank alone."""
    from brain_dist.data import plan
    from brain_dist.loaders import open_loader
    from brain_dist.loaders.batch import evaluation_jobs

    chosen = choose(predictions, config.track.examples)
    planned = plan.evaluation(predictions.row[chosen], micro_batch=len(chosen), rank=0, world=1)
    jobs = evaluation_jobs(dataset, config.data, planned)
    made = []
    for batch in open_loader(config.data, dataset, jobs, augmented=False, batch=len(chosen), device=device):
        pictures = finish.gray(finish(batch.image))
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
