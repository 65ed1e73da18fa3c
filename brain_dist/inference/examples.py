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
    predictions: Predictions, dataset: Dataset, config: Config, finish: Normalize, device: torch.device
) -> list[Example]:
    """The ``track.examples`` most telling images of an evaluation; for one rank alone."""
    from brain_dist.stream import plan
    from brain_dist.stream.batch import evaluation_jobs
    from brain_dist.stream.loader import open_loader

    chosen = choose_examples(predictions, config.track.examples)
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
