"""Measure every stage of a training step on all ranks, and conclude what binds."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from brain_dist.config import Config

if TYPE_CHECKING:
    import torch

    from brain_dist.ranks.world import World
    from brain_dist.store.dataset import Dataset


LOADERS = ("dali", "torch", "synthetic")


STAGES = ("storage read", "loader", "host to device", "waiting for data", "forward", "backward", "optimiser",
          "communication", "other")  # fmt: skip


# Shares of the step from which a stage is said to bind
WAITING, TALKING, STEPPING = 0.1, 0.2, 0.25


def measure(
    config: Config, dataset: Dataset, world: World, device: torch.device, *, steps: int, trace: str | None = None
) -> dict[str, Any]:
    """Everything that the table holds, of all ranks; every rank must call.

    Times are seconds an optimiser step, the mean over the ranks. ``alone`` counts every micro-batch of the step.
    """
    import torch

    from brain_dist.networks.create import create_network
    from brain_dist.profiling import stages
    from brain_dist.profiling.power import measure_power
    from brain_dist.ranks.group import gather_objects
    from brain_dist.training.engine import Engine

    # as many epochs as it takes: a small collection has fewer steps than are measured
    endless = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=1_000_000))
    alone = stages.alone(endless, dataset, world, device, steps)
    model = create_network(config.model, len(dataset.classes), seed=config.run.seed, load_weights=False)
    engine = Engine(endless, model, world, device)
    with measure_power(device) as watched:
        both = stages.together(endless, dataset, engine, world, device, steps, trace)
    held = {**stages.memory(engine, device), **{name: both[name] for name in ("gradients", "buckets")}}
    place = {"host": platform.node(), "cores": os.sched_getaffinity(0)}
    own = {**alone, **both, "memory": held, "power": watched, **place}
    ranks = gather_objects(own, world)

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    once = ("optimiser", "communication")  # a step; the others once a micro-batch
    seconds = {
        name: mean([rank["seconds"][name] for rank in ranks]) * (1 if name in once else engine.micros)
        for name in alone["seconds"]
    }
    step = max(rank["step"] for rank in ranks)
    names = sorted({name for rank in ranks for name in rank["stages"]}, key=STAGES.index)
    batch, watts = config.train.global_batch, [rank["power"].get("watts") for rank in ranks]
    found = {
        "model": config.model.name, "size": config.data.size, "precision": config.train.precision,
        "zero_stage": config.train.zero_stage, "loader": config.data.loader, "device": device.type,
        "world": world.size, "global_batch": batch, "micros": engine.micros, "steps": steps,
        "parameters": alone["parameters"], "alone": seconds, "step": step, "images_per_s": batch / step,
        "measured_step": mean([rank["measured_step"] for rank in ranks]),
        "together": {name: mean([rank["stages"].get(name, 0.0) for rank in ranks]) for name in names},
        "collectives": both["collectives"],
        "bytes_sent": mean([sum(size for _, size in rank["collectives"].values()) for rank in ranks]),
        "messages": mean([sum(count for count, _ in rank["collectives"].values()) for rank in ranks]),
        "flops_per_image": alone["flops_per_image"], "matrix_rate": mean([rank["matrix_rate"] for rank in ranks]),
        "memory": {name: max(rank["memory"][name] for rank in ranks) for name in own["memory"]},
        "power": ranks[0]["power"], "hosts": len({rank["host"] for rank in ranks}),
        # a scheduler may give each task of a node cores of its own
        "cores": len(set().union(*(rank["cores"] for rank in ranks if rank["host"] == ranks[0]["host"]))),
        "threads": torch.get_num_threads(),
        "joules_per_image": sum(watts) * step / batch if all(watts) else None,
    }  # fmt: skip
    found["mfu"] = found["flops_per_image"] * found["images_per_s"] / (world.size * found["matrix_rate"])
    found["verdict"], found["advice"] = verdict(found)
    return found


def verdict(found: dict[str, Any]) -> tuple[str, str]:
    """What binds, and what to change, from the shares of the step."""
    total, part = found["measured_step"], found["together"]
    share = {name: seconds / total for name, seconds in part.items()}
    waiting, talking = share.get("waiting for data", 0.0), share.get("communication", 0.0)
    if waiting >= WAITING and waiting >= talking:
        if found["alone"]["storage read"] > 0.5 * found["alone"]["loader"]:
            return "storage", "reading the bytes is slow: stage the shards on the node's disk with data.cache_dir"
        return "loader", (
            "decoding and augmentation do not keep up: more data.threads, data.color=gray, a larger data.prefetch,"
            " or shards built with a smaller --max-side"
        )
    if talking >= TALKING:
        return "communication", (
            "a larger train.global_batch accumulates more between exchanges; a lower train.zero_stage sends less;"
            " or a faster network"
        )
    if share.get("optimiser", 0.0) >= STEPPING:
        return "optimiser", "a larger train.global_batch steps less often; ZeRO stages 1 and 2 share the step out"
    return "network", (
        "forward and backward bind, as they should: a larger train.micro_batch or train.precision=bf16 may raise the"
        " share of the device's matrix rate; more devices shorten the epoch"
    )


def compare(config: Config, dataset: Dataset, world: World, device: torch.device, steps: int) -> dict[str, float]:
    """Images/s over all ranks of each loader alone, side by side."""
    from brain_dist.profiling import stages
    from brain_dist.ranks.group import gather_objects

    rates = {}
    for name in LOADERS:
        data = dataclasses.replace(config.data, loader=name)  # type: ignore[arg-type]
        train = dataclasses.replace(config.train, epochs=1_000_000)
        chosen = dataclasses.replace(config, data=data, train=train)
        seconds = stages.loading(chosen, dataset, world, device, steps)["loader"]
        rates[name] = world.size * config.train.micro_batch / max(gather_objects(seconds, world))
    return rates
