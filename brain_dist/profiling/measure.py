"""Measure training steps on all ranks, combine the measurements into a profile and report it."""

from __future__ import annotations

import gc
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from brain_dist.common.cores import core_limits
from brain_dist.config import Config
from brain_dist.errors import UserError
from brain_dist.profiling.calibration import calibrate
from brain_dist.profiling.isolated_stages import measure_isolated_stages, measure_loader
from brain_dist.profiling.memory import measure_memory
from brain_dist.profiling.profile import Profile, combine
from brain_dist.profiling.report import report_profile
from brain_dist.profiling.training_steps import measure_training_steps, total_steps
from brain_dist.ranks.device import choose_device, choose_kernels
from brain_dist.ranks.group import clear_faults, gather_objects, process_group, run_on_main
from brain_dist.ranks.world import World, discover
from brain_dist.store.access import check_shards, open_data
from brain_dist.store.reader import batches_ahead
from brain_dist.stream.batches import with_loader
from brain_dist.training.precision import resolve_precision

if TYPE_CHECKING:
    import torch

    from brain_dist.store.dataset import Dataset

LOADERS = ("opencv", "dali", "torch", "synthetic")
ENDLESS = 1_000_000  # epochs: a small collection has fewer steps than are measured


def run_profile(config: Config, *, steps: int, out: Path, trace: Path | None, compare_loaders: bool) -> None:
    """Profile on this rank; every rank must call.

    Args:
        config: settings of the run.
        steps: steps of each measurement, ≥ 1.
        out: file for the profile, written by the main rank.
        trace: file for a Chrome trace of the main rank's steps; None writes none.
        compare_loaders: also measure each loader alone.

    Raises:
        UserError: a setting is invalid, or the shards are missing, damaged or without a training split.
        Fault: another rank ended, or the memory of the device is full.
    """
    world = discover()
    dataset = open_data(config.data, Path(config.run.dir))
    rows = dataset.rows("train")
    if not len(rows):
        raise UserError(f"{dataset.root} has no training split; rebuild it with other --fractions")
    device = choose_device(world, config.run.device)
    choose_kernels(deterministic=config.run.deterministic)
    config = with_loader(config, device)
    advice = f"lower train.micro_batch={config.train.micro_batch} or data.size={config.data.size}"
    with clear_faults(advice), process_group(world, device, loading_threads=config.data.threads):
        run_on_main(world, lambda: check_shards(dataset, rows))
        config, reason = resolve_precision(config, world, device)
        if reason and world.is_main:
            print(f"train.precision={config.train.precision}: {reason}", file=sys.stderr, flush=True)
        profile = measure_profile(config, dataset, world, device, steps=steps, trace=trace)
        if compare_loaders:
            profile["loaders"] = measure_loaders(config, dataset, world, device, steps)
    if world.is_main:
        report_profile(profile, config, out)
        if trace:
            print(f"trace: {trace}; open it in ui.perfetto.dev or chrome://tracing")


def measure_profile(
    config: Config, dataset: Dataset, world: World, device: torch.device, *, steps: int, trace: Path | None = None
) -> Profile:
    """Profile a training step; every rank must call, and all get the same profile."""
    import torch

    from brain_dist.networks.create import create_network
    from brain_dist.training.engine import Engine

    config = replace(config, train=replace(config.train, epochs=ENDLESS))
    model = create_network(config.model, len(dataset.classes), seed=config.run.seed, load_weights=False)
    engine = Engine(config, model, world, device)
    training = measure_training_steps(engine, dataset, steps, trace)
    memory = {**measure_memory(engine), **{kind: training[kind] for kind in ("gradients", "buckets", "peak")}}
    engine.deepspeed.destroy()
    del engine, model
    gc.collect()  # the engine refers to itself; what follows needs its memory
    before = calibrate(device, config.train.precision)
    fresh = total_steps(steps) + batches_ahead(config.data.prefetch)  # images from here on are not in memory yet
    isolated = measure_isolated_stages(config, dataset, world, device, steps, first_step=fresh)
    after = calibrate(device, config.train.precision)
    calibration = {
        "matrix_rate": max(before["rate"], after["rate"]), "cpu_share": min(before["cpu_share"], after["cpu_share"])
    }  # fmt: skip
    place = {
        "host": platform.node(), "cores": sorted(os.sched_getaffinity(0)), "quota": core_limits().get("cgroup quota"),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    ranks = gather_objects({**isolated, **training, **calibration, **place, "memory": memory}, world)
    return combine(ranks, config, device.type, steps)


def measure_loaders(
    config: Config, dataset: Dataset, world: World, device: torch.device, steps: int
) -> dict[str, float]:
    """Images per second of each loader over all ranks, with nothing else running; every rank must call."""
    rates = {}
    for loader in LOADERS:
        data = replace(config.data, loader=loader)  # type: ignore[arg-type]
        loading = replace(config, data=data, train=replace(config.train, epochs=ENDLESS))
        seconds = gather_objects(measure_loader(loading, dataset, world, device, steps), world)
        rates[loader] = world.size * config.train.micro_batch / max(seconds)
    return rates
