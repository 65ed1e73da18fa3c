"""One rank of ``benchmarks.network`` and ``benchmarks.zero``: real steps of the engine, and what they send and hold.

``python -m benchmarks.network_worker JOBS.json OUT.json`` in a namespace of :mod:`benchmarks.namespaces`. A job is a
bandwidth, a ZeRO stage, a precision and DeepSpeed's own settings; the main rank writes what every rank found.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import namespaces

ALONE = 3  # all-reduces of all parameters, by themselves


def main() -> None:
    """Do every job in turn, in one process group."""
    import torch

    from brain_dist.ranks.group import gather_objects, process_group
    from brain_dist.ranks.world import discover

    jobs = json.loads(Path(sys.argv[1]).read_text())
    world, device, found = discover(), torch.device("cpu"), []
    with process_group(world, device, timeout=120):
        for job in jobs:
            found.append({**job, "ranks": gather_objects(measure(job, world, device), world)})
    if world.is_main:
        Path(sys.argv[2]).write_text(json.dumps(found))


def measure(job: dict[str, Any], world: Any, device: Any) -> dict[str, Any]:
    """What this rank measured, counted and held."""
    import torch.distributed as dist

    from brain_dist.config import load
    from brain_dist.networks.create import create_network
    from brain_dist.profiling import stages
    from brain_dist.store.access import open_data
    from brain_dist.training.engine import Engine

    config = load(job["settings"], "benchmarks.network", "")
    dataset = open_data(config.data, Path(config.run.dir))
    model = create_network(config.model, len(dataset.classes), seed=0)
    engine = Engine(config, model, world, device)
    # the first steps exchange more: stage 3 learns in which order the weights are needed
    stages.together(config, dataset, engine, world, device, 1, None)
    namespaces.shape(job["rate"])
    alone, bytes_alone = _all_reduce(engine.parameters)
    dist.barrier()
    began = namespaces.sent()
    both = stages.together(config, dataset, engine, world, device, job["steps"], None)
    dist.barrier()
    steps = stages.WARM + 2 * job["steps"] + 1  # undisturbed, measured, and one to look at the gradients
    wire = (namespaces.sent() - began) / steps
    namespaces.shape(None)
    memory = stages.memory(engine, device)
    engine.deepspeed.destroy()
    return {**both, "alone": alone, "alone_bytes": bytes_alone, "wire": wire, "parameters": engine.parameters,
            "memory": memory}  # fmt: skip


def _all_reduce(elements: int) -> tuple[float, float]:
    """Median seconds of an all-reduce in fp32, and bytes that eth0 sent for one."""
    import statistics
    import time

    import torch
    import torch.distributed as dist

    flat = torch.zeros(elements)
    dist.all_reduce(flat)
    dist.barrier()
    began, taken = namespaces.sent(), []
    for _ in range(ALONE):
        start = time.perf_counter()
        dist.all_reduce(flat)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), (namespaces.sent() - began) / ALONE


if __name__ == "__main__":
    main()
