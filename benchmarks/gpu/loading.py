"""Stages ``loader`` (the loaders alone) and ``real`` (training on real beside noise images, and saving)."""

from __future__ import annotations

import resource
import time
from itertools import product
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.engines import Engines, engines
from benchmarks.gpu.frame import Check
from benchmarks.gpu.settings import create_config

if TYPE_CHECKING:
    from brain_dist.training.engine import Engine


def run_loader(check: Check) -> None:
    """Images per second of the loader alone, by images, colour, threads and prefetching."""
    threads = check.sizes.threads
    base = {"loader": check.loader, "shards": check.shards, "color": "gray", "threads": threads}
    cases: list[dict[str, Any]] = [
        {**base, "shards": shards, "color": color, "threads": 1 if check.dry else count}
        for shards, color, count in product(check.all_shards, ("gray", "rgb"), (16, 8, 4, 2))
    ]
    cases += [{**base, "prefetch": prefetch} for prefetch in (1, 4)]
    cases.append({**base, "loader": "torch", "threads": threads + 3})
    with engines(check) as bench:
        for case in cases:
            if check.has_time(10 if case["loader"] == "torch" else 4):
                check.attempt("loader", lambda case=case: loading_rate(bench, case), **case)  # type: ignore[misc]


def loading_rate(bench: Engines, settings: dict[str, Any]) -> dict[str, float]:
    """Images per second for about 1.6 s after some batches of warm-up, and CPU time of this process per image."""
    check = bench.check
    config = create_config(check, settings)
    batches = bench.batches(config)
    warmup, most = (2, 2) if check.dry else (6, 200)
    for _ in range(warmup):
        next(batches)
    start, cpu_start, count = check.now(), _cpu_seconds(), 0
    while count < most and time.perf_counter() - start < 1.6:
        next(batches)
        count += 1
    seconds, images = check.now() - start, count * config.train.micro_batch
    return {"images_per_s": images / seconds, "cpu_ms_an_image": 1e3 * (_cpu_seconds() - cpu_start) / images}


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run_real(check: Check) -> None:
    """Training on noise and on real images in turn with one engine, then the time that a save takes."""
    import torch

    cases: list[dict[str, Any]] = [
        {"loader": "synthetic"},
        {"loader": check.loader, "color": "gray"},
        {"loader": check.loader, "color": "rgb"},
    ]
    cases += [{"loader": check.loader, "color": "gray", "shards": shards} for shards in check.all_shards[1:]]
    sizes = check.sizes
    with engines(check) as bench:
        torch.backends.cudnn.benchmark = True
        engine = bench.create(create_config(check, {"zero": 2}))

        def training_rate(case: dict[str, Any]) -> dict[str, float]:
            batches = bench.batches(create_config(check, {"zero": 2, **case}))
            return bench.rate(engine, batches, 2 * sizes.steps, sizes.warmup)

        for case in [*cases, *cases]:
            if check.has_time(8):
                check.attempt("training", lambda case=case: training_rate(case), **case)  # type: ignore[misc]
        for _ in range(2):
            if check.has_time(12):
                check.attempt("save", lambda: save_seconds(check, engine))


def save_seconds(check: Check, engine: Engine) -> dict[str, float]:
    """Seconds that a save stops training, seconds until it is complete, and its size in GB."""
    from brain_dist.training.saving import Saver

    saver = Saver(check.kit / "stall" / "checkpoints", engine, {}, keep=1)
    start = check.now()
    saver.begin(1)
    stalled = check.now()
    saver.finish()
    return {"stall_s": stalled - start, "whole_s": time.perf_counter() - start, "gb": saver.bytes / 1e9}
