"""One rank of ``benchmarks.network`` and ``benchmarks.zero``: real training steps, their traffic and their memory.

``python -m benchmarks.support.network_worker JOBS.json OUT.json`` in a namespace of
:mod:`benchmarks.support.namespaces`. A job is a bandwidth, a ZeRO stage, a precision and DeepSpeed settings. The main
rank writes the measurements of all ranks.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.support import namespaces

REPEATS = 3  # all-reduces of all parameters, measured by themselves


def main() -> None:
    """Run all jobs in one process group."""
    import torch

    from brain_dist.ranks.group import gather_objects, process_group
    from brain_dist.ranks.world import discover

    jobs = json.loads(Path(sys.argv[1]).read_text())
    world, device, results = discover(), torch.device("cpu"), []
    with process_group(world, device, timeout=120):
        for job in jobs:
            results.append({**job, "ranks": gather_objects(measure(job, world, device), world)})
    if world.is_main:
        Path(sys.argv[2]).write_text(json.dumps(results))


def measure(job: dict[str, Any], world: Any, device: Any) -> dict[str, Any]:
    """Measurements of this rank."""
    import torch.distributed as dist

    from brain_dist.config import load
    from brain_dist.networks.create import create_network
    from brain_dist.profiling.memory import measure_memory
    from brain_dist.profiling.training_steps import measure_training_steps, total_steps
    from brain_dist.store.access import open_data
    from brain_dist.training.engine import Engine

    config = load(job["settings"], "benchmarks.network", "")
    dataset = open_data(config.data, Path(config.run.dir))
    model = create_network(config.model, len(dataset.classes), seed=0)
    engine = Engine(config, model, world, device)
    # Warm-up: in its first steps stage 3 records the order in which the weights are needed, and sends more
    measure_training_steps(engine, dataset, 1)
    namespaces.limit_rate(job["rate"])
    all_reduce, all_reduce_bytes = _measure_all_reduce(engine.parameters)
    dist.barrier()
    before = namespaces.bytes_sent()
    training = measure_training_steps(engine, dataset, job["steps"])
    dist.barrier()
    wire = (namespaces.bytes_sent() - before) / total_steps(job["steps"])
    namespaces.limit_rate(None)
    memory = measure_memory(engine)
    engine.deepspeed.destroy()
    return {
        **training,
        "all_reduce": all_reduce,
        "all_reduce_bytes": all_reduce_bytes,
        "wire": wire,
        "parameters": engine.parameters,
        "memory": memory,
    }


def _measure_all_reduce(elements: int) -> tuple[float, float]:
    """Median seconds of an all-reduce in fp32, and the bytes that eth0 sent for one."""
    import torch
    import torch.distributed as dist

    values = torch.zeros(elements)
    dist.all_reduce(values)
    dist.barrier()
    before, seconds = namespaces.bytes_sent(), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        dist.all_reduce(values)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), (namespaces.bytes_sent() - before) / REPEATS


if __name__ == "__main__":
    main()
