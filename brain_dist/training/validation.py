"""Loss and metrics on the validation split during training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from brain_dist.config import Metric

if TYPE_CHECKING:
    from brain_dist.judging.predictions import Predictions
    from brain_dist.ranks.watch import Watch
    from brain_dist.store.dataset import Dataset
    from brain_dist.training.engine import Engine


def validate(engine: Engine, dataset: Dataset, watch: Watch, steps_done: int) -> tuple[dict[str, Any], Predictions]:
    """Evaluate the network on the validation split after ``steps_done`` steps. Every rank must call.

    Returns:
        The metrics and the predictions, exact over all ranks. The metrics are those of ``Metric`` (loss: cross-entropy
        without label smoothing), ``per_class`` and ``confusion``. The main rank computes them, so that all ranks decide
        on the same numbers.
    """
    from brain_dist.inference.logits import predict_logits
    from brain_dist.judging.predictions import predictions_from_logits
    from brain_dist.ranks.group import gather_objects
    from brain_dist.stream.batches import evaluation_batches

    config, world, rows = engine.config, engine.world, dataset.rows("val")
    batches = evaluation_batches(
        config.data, dataset, rows,
        micro_batch=config.train.micro_batch, device=engine.device, rank=world.rank, world_size=world.size,
    )  # fmt: skip
    watched = watch.watch_items(batches, f"evaluating after step {steps_done}")
    with engine.evaluating() as network:
        logits = predict_logits(network, engine.normalize, watched, rows, world)
    predictions = predictions_from_logits(dataset, rows, logits, run=config.run.name, step=0)
    metrics = gather_objects(predictions.evaluate() if world.is_main else None, world)[0]
    row = {name: metrics["nll" if name == "loss" else name] for name in get_args(Metric)}
    return {**row, **{name: metrics[name] for name in ("per_class", "confusion")}}, predictions
