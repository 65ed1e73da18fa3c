"""Loss and metrics on the validation split during training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from brain_dist.config import Config, Metric

if TYPE_CHECKING:
    import torch

    from brain_dist.judging.predictions import Predictions
    from brain_dist.ranks.watch import Watch
    from brain_dist.ranks.world import World
    from brain_dist.store.dataset import Dataset
    from brain_dist.training.engine import Engine


def validate(
    config: Config, dataset: Dataset, engine: Engine, world: World, device: torch.device, watch: Watch, done: int
) -> tuple[dict[str, Any], Predictions]:
    """Loss (cross-entropy without smoothing) and metrics on the validation split after ``done`` steps, exact over the
    ranks; and the predictions that they judge. The main rank judges, so that all decide on the same numbers."""
    from brain_dist.inference.logits import predict_logits
    from brain_dist.judging.predictions import predictions_from_logits
    from brain_dist.ranks.group import gather_objects
    from brain_dist.stream.batches import evaluation_batches

    rows, micro_batch = dataset.rows("val"), config.train.micro_batch
    loader = evaluation_batches(
        config.data, dataset, rows, micro_batch=micro_batch, device=device, rank=world.rank, world_size=world.size
    )
    watched = watch.along(loader, f"evaluating after step {done}")
    with engine.evaluating() as model:
        logits = predict_logits(model, engine.normalize, watched, rows, world)
    predictions = predictions_from_logits(dataset, rows, logits, run=config.run.name, step=0)
    (judged, *_) = gather_objects(predictions.evaluate() if world.is_main else None, world)
    values = {name: judged["nll" if name == "loss" else name] for name in get_args(Metric)}
    return {**values, **{name: judged[name] for name in ("per_class", "confusion")}}, predictions
