"""Each stage of a training step alone, on a plain copy of the network, with nothing else running."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from brain_dist.config import Config
from brain_dist.profiling.flops import counted_flops
from brain_dist.profiling.stopwatch import Stopwatch
from brain_dist.ranks.world import World

if TYPE_CHECKING:
    import torch

    from brain_dist.store.dataset import Dataset

WARMUP_STEPS = 2


def measure_isolated_stages(
    config: Config, dataset: Dataset, world: World, device: torch.device, steps: int, *, first_step: int
) -> dict[str, Any]:
    """Measure each stage ``steps`` times; every rank must call.

    Args:
        config: settings of the run.
        dataset: the shards.
        world: this process among all processes.
        device: the device of this process.
        steps: number of measurements.
        first_step: the first step whose images were not read before.

    Returns:
        ``alone``: stage → seconds per micro-batch, but "optimiser" and "communication" (an all-reduce of all
        parameters) per step; the mean of "storage read" and "loader", which includes it, and the median of the others.
        ``parameters``: number of parameters of the network. ``flops_per_image``: floating-point operations of a forward
        and backward pass.
    """
    import torch

    from brain_dist.networks.create import create_network
    from brain_dist.store.reader import batches_ahead
    from brain_dist.stream.normalize import Normalize
    from brain_dist.training.deepspeed_setup import compute_dtype
    from brain_dist.training.optim import create_optimizer

    watch, train, data = Stopwatch(device), config.train, config.data
    dtype = compute_dtype(train.precision)
    behind = first_step + steps + 2 * batches_ahead(data.prefetch)  # beyond what reading alone reads
    seconds = {
        "storage read": measure_reading(config, dataset, world, steps, first_step),
        "loader": measure_loader(config, dataset, world, device, steps, first_step=behind),
    }
    model = create_network(config.model, len(dataset.classes), seed=config.run.seed, load_weights=False)
    model = model.to(device).to(dtype).train()
    shape = (train.micro_batch, 1 if data.color == "gray" else 3, data.size, data.size)
    image = torch.randint(0, 256, shape, dtype=torch.uint8)
    if device.type == "cuda":
        pinned = image.pin_memory()
        seconds["host to device"] = watch.median(lambda: pinned.to(device, non_blocking=True), steps)
    normalized = Normalize(data, config.model.in_chans, device, dtype)(image.to(device))
    label = torch.zeros(len(image), dtype=torch.int64, device=device)

    def loss() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "amp"):
            return torch.nn.functional.cross_entropy(model(normalized).float(), label)

    with counted_flops() as counter:
        loss().backward()
    seconds |= _measure_compute(loss, create_optimizer(config.optim, model), watch, steps)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if world.size > 1:
        import torch.distributed as dist

        flat = torch.zeros(parameters, dtype=dtype, device=device)
        seconds["communication"] = watch.median(lambda: dist.all_reduce(flat), max(3, steps // 2))
    return {
        "alone": seconds,
        "parameters": parameters,
        "flops_per_image": counter.get_total_flops() / train.micro_batch,
    }


def measure_reading(config: Config, dataset: Dataset, world: World, steps: int, first_step: int) -> float:
    """Seconds per micro-batch of reading its bytes ahead, from ``first_step`` on, as the loaders do.

    Images that were read before ``first_step`` are in memory, so they would hide a slow storage.
    """
    import torch

    from brain_dist.store.reader import ShardReader, read_ahead
    from brain_dist.stream.batches import training_plan

    reader = ShardReader(dataset)
    plan = training_plan(config, dataset).micro_batches(world.rank, world.size, first_step)
    batches = read_ahead(lambda micro: [reader.read(row) for row in micro.rows.tolist()], plan, config.data.prefetch)
    return _mean_seconds(batches, config, Stopwatch(torch.device("cpu")), steps)


def measure_loader(
    config: Config, dataset: Dataset, world: World, device: torch.device, steps: int, *, first_step: int = 0
) -> float:
    """Seconds per micro-batch of the whole loader, from ``first_step`` on."""
    from brain_dist.stream.batches import training_batches

    batches = training_batches(config, dataset, world, device, first_step=first_step)
    return _mean_seconds(batches, config, Stopwatch(device), steps)


def _mean_seconds(batches: Iterator[Any], config: Config, watch: Stopwatch, steps: int) -> float:
    """Mean seconds of a batch, once those that were ready at the start are used up."""
    from brain_dist.store.reader import READING_THREADS

    for _ in range(WARMUP_STEPS + config.data.prefetch):
        next(batches)
    # threads that wait for storage give their batches all at once, then none for a while: count whole rounds
    return watch.mean(lambda: next(batches), -(-steps // READING_THREADS) * READING_THREADS)


def _measure_compute(
    loss: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer, watch: Stopwatch, steps: int
) -> dict[str, float]:
    """Median seconds of the forward pass, the backward pass and the optimiser's step."""
    seconds: dict[str, list[float]] = {"forward": [], "backward": [], "optimiser": []}
    for step in range(WARMUP_STEPS + steps):
        watch.seconds.clear()
        with watch.stage("forward"):
            value = loss()
        with watch.stage("backward"):
            value.backward()
        with watch.stage("optimiser"):
            optimizer.step()
        if step >= WARMUP_STEPS:
            for stage, values in seconds.items():
                values.append(watch.seconds[stage])
    return {stage: statistics.median(values) for stage, values in seconds.items()}
