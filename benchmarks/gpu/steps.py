"""Stages of the training step on noise images: ``step``, ``compile`` and ``kernels``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.gpu.engines import Engines, engines, no_timer, take_step
from benchmarks.gpu.frame import Check, release_all_tensors
from benchmarks.gpu.settings import FLAGSHIP, create_config
from brain_dist.profiling.stopwatch import replaced

TOP_KERNELS = 30


def run_step(check: Check) -> None:
    """Images per second by batch size, ZeRO stage and precision, and with the recipe of the flagship."""
    batch, timer = check.sizes.batch, no_timer(check)
    base = {"batch": batch, "zero": 2}
    flagship = {**FLAGSHIP, "batch": batch, "warm": 3}
    as_configured = {**flagship, "batch": batch // 8, "micros": 8, "steps": 3}
    with engines(check) as bench:
        bench.measure("product", base, benchmark=False)
        bench.measure("product", base)
        bench.measure("product, no timer", {**base, "deepspeed": timer})
        bench.measure("product, no timer", {**base, "zero": 0, "deepspeed": timer})
        bench.measure("flagship", flagship)
        bench.measure("flagship as configured", as_configured, benchmark=False)
        bench.measure("flagship as configured, no timer", {**as_configured, "deepspeed": timer})
        for change in (
            {"batch": batch // 2},
            {"batch": batch // 4},
            {"batch": 2 * batch},
            {"zero": 1},
            {"zero": 3},
            {"precision": "amp"},
            {"precision": "amp", "zero": 0},
            {"precision": "fp16"},
            {"precision": "fp32", "batch": batch // 4, "steps": 3, "warm": 2},
        ):
            if check.dry and change.get("precision") == "fp16":
                continue  # DeepSpeed has no fp16 on the CPU
            if check.has_time(8):
                bench.measure("product", {**base, **change})


def run_compile(check: Check) -> None:
    """Images per second of compiled networks."""
    batch = check.sizes.batch
    base = {"batch": batch, "compile": True, "zero": 2, "deepspeed": no_timer(check)}
    with engines(check) as bench, _without_compiler(check):
        for change in ({}, {"zero": 0, "precision": "amp"}, {"batch": 2 * batch}):
            if check.has_time(20):
                bench.measure("product compiled", {**base, **change})


@contextmanager
def _without_compiler(check: Check) -> Iterator[None]:
    """In a dry check, trace networks but run them eagerly, because there may be no C++ compiler."""
    import torch

    if not check.dry:
        yield
        return
    compile_module = torch.nn.Module.compile
    with replaced(torch.nn.Module, "compile", lambda module, **_: compile_module(module, backend="eager")):
        yield


def run_kernels(check: Check) -> None:
    """Time of the GPU by kernel, and how long it is idle in a step."""
    import torch

    batch = check.sizes.batch
    cases: list[dict[str, Any]] = [{"zero": 2}]
    if not check.dry:
        cases += [FLAGSHIP, {**FLAGSHIP, "batch": batch // 8, "micros": 8}, {"zero": 0, "precision": "amp"}]
    with engines(check) as bench:
        torch.backends.cudnn.benchmark = True
        for case in cases:
            if check.has_time(8):
                check.attempt("kernels", lambda case=case: profile_kernels(bench, case), **case)  # type: ignore[misc]


def profile_kernels(bench: Engines, settings: dict[str, Any]) -> dict[str, Any]:
    """Profile two steps (one, if it has several micro-batches).

    Returns:
        ``steps``; ``wall_s``; ``device_s``, the time of all kernels; ``idle``, the share of ``wall_s`` without a
        kernel; ``launches``; ``top``, [name, calls, milliseconds] of the kernels that take the most time.
    """
    from torch.profiler import ProfilerActivity, profile

    check = bench.check
    release_all_tensors()
    config = create_config(check, settings)
    engine, batches = bench.create(config), bench.batches(config)
    for _ in range(check.sizes.warmup):
        take_step(engine, batches)
    check.now()  # none of their kernels is left
    steps = 1 if check.dry or engine.accumulation_steps > 1 else 2
    # of the GPU only kernels: the thousands of events on the host would slow the step down
    activity, column = ProfilerActivity.CUDA, "self_device_time_total"
    if check.dry:
        activity, column = ProfilerActivity.CPU, "self_cpu_time_total"
    with profile(activities=[activity]) as profiler:
        start = check.now()
        for _ in range(steps):
            take_step(engine, batches)
        wall = check.now() - start
    kernels = [row for row in profiler.key_averages() if check.dry or str(row.device_type).endswith("CUDA")]
    kernels.sort(key=lambda row: getattr(row, column), reverse=True)
    device_seconds = sum(getattr(row, column) for row in kernels) / 1e6
    return {
        "steps": steps,
        "wall_s": wall,
        "device_s": device_seconds,
        "idle": 1 - device_seconds / wall,
        "launches": sum(row.count for row in kernels),
        "top": [[row.key[:110], row.count, round(getattr(row, column) / 1e3, 2)] for row in kernels[:TOP_KERNELS]],
    }
