"""Each stage of a training step alone, on a plain copy of the network, with nothing else running."""

from __future__ import annotations

import statistics
from collections.abc import Callable
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
    config: Config, dataset: Dataset, world: World, device: torch.device, steps: int
) -> dict[str, Any]:
    """Measure each stage ``steps`` times and take the median; every rank must call.

    Returns:
        ``alone``: stage → seconds per micro-batch, but "optimiser" and "communication" (an all-reduce of all
        parameters) per step; "loader" includes "storage read". ``parameters``: number of parameters of the network.
        ``flops_per_image``: floating-point operations of a forward and backward pass.
    """
    import torch

    from brain_dist.networks.create import create_network
    from brain_dist.stream.normalize import Normalize
    from brain_dist.training.deepspeed_setup import compute_dtype
    from brain_dist.training.optim import create_optimizer

    watch, train, data = Stopwatch(device), config.train, config.data
    dtype = compute_dtype(train.precision)
    seconds = measure_loading(config, dataset, world, device, steps)
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


def measure_loading(
    config: Config, dataset: Dataset, world: World, device: torch.device, steps: int
) -> dict[str, float]:
    """Seconds per micro-batch of reading the bytes ("storage read") and of the whole loader ("loader")."""
    from brain_dist.store.reader import ShardReader
    from brain_dist.stream.batches import training_batches
    from brain_dist.stream.plan import epoch_order

    rows = epoch_order(dataset.rows("train"), dataset.rows("train") * 0, seed=config.run.seed, epoch=0)
    reader, watch, size = ShardReader(dataset), Stopwatch(device), config.train.micro_batch
    read_seconds = []
    for step in range(min(steps, max(1, len(rows) // size))):
        start = watch.now()
        for row in rows[step * size : (step + 1) * size]:
            reader.read(int(row))
        read_seconds.append(watch.now() - start)
    batches = training_batches(config, dataset, world, device, first_step=0)
    for _ in range(WARMUP_STEPS + config.data.prefetch):
        next(batches)
    loader_seconds = watch.mean(lambda: next(batches), steps)
    return {"storage read": statistics.median(read_seconds), "loader": loader_seconds}


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
