"""Measure a training step on all ranks and combine the measurements into a profile."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from brain_dist.config import Config
from brain_dist.profiling.isolated_stages import IsolatedStages, measure_isolated_stages, measure_loading
from brain_dist.profiling.memory import measure_memory
from brain_dist.profiling.power import measure_power
from brain_dist.profiling.profile import STAGES, Profile, find_bottleneck
from brain_dist.profiling.training_steps import TrainingSteps, measure_training_steps
from brain_dist.ranks.group import gather_objects
from brain_dist.ranks.world import World

if TYPE_CHECKING:
    import torch

    from brain_dist.store.dataset import Dataset

LOADERS = ("dali", "torch", "synthetic")
STAGES_OF_STEP = ("optimiser", "communication")  # measured per step; the others per micro-batch
ENDLESS = 1_000_000  # epochs: a small collection has fewer steps than are measured


@dataclass(frozen=True)
class RankMeasurement:
    """Everything that one rank measured."""

    isolated: IsolatedStages
    training: TrainingSteps
    memory: dict[str, int]
    power: dict[str, float]
    host: str
    cores: set[int]


def measure_profile(
    config: Config, dataset: Dataset, world: World, device: torch.device, *, steps: int, trace: str | None = None
) -> Profile:
    """Profile a training step; every rank must call, and all get the same profile.

    Args:
        config: settings of the run.
        dataset: the shards.
        world: the ranks.
        device: device of this rank.
        steps: steps of each measurement.
        trace: file for a Chrome trace of the main rank's steps.
    """
    from brain_dist.networks.create import create_network
    from brain_dist.training.engine import Engine

    config = replace(config, train=replace(config.train, epochs=ENDLESS))
    isolated = measure_isolated_stages(config, dataset, world, device, steps)
    model = create_network(config.model, len(dataset.classes), seed=config.run.seed, load_weights=False)
    engine = Engine(config, model, world, device)
    with measure_power(device) as power:
        training = measure_training_steps(engine, dataset, steps, trace)
    measurement = RankMeasurement(
        isolated=isolated,
        training=training,
        memory={**measure_memory(engine), "gradients": training.gradients, "buckets": training.buckets},
        power=power,
        host=platform.node(),
        cores=os.sched_getaffinity(0),
    )
    return _combine(gather_objects(measurement, world), config, device, steps)


def measure_loaders(
    config: Config, dataset: Dataset, world: World, device: torch.device, steps: int
) -> dict[str, float]:
    """Images per second of each loader over all ranks, with nothing else running; every rank must call."""
    rates = {}
    for loader in LOADERS:
        data = replace(config.data, loader=loader)  # type: ignore[arg-type]
        loading = replace(config, data=data, train=replace(config.train, epochs=ENDLESS))
        seconds = gather_objects(measure_loading(loading, dataset, world, device, steps)["loader"], world)
        rates[loader] = world.size * config.train.micro_batch / max(seconds)
    return rates


def _combine(ranks: list[RankMeasurement], config: Config, device: torch.device, steps: int) -> Profile:
    """The profile of all ranks, from their measurements in rank order."""
    import torch

    main, train, traffic = ranks[0], config.train, [rank.training.collectives for rank in ranks]
    micros = train.global_batch // (train.micro_batch * len(ranks))
    alone, together = _stages_alone(ranks, micros), _stages_together(ranks)
    step = max(rank.training.step for rank in ranks)
    matrix_rate = statistics.fmean(rank.isolated.matrix_rate for rank in ranks)
    images_per_s, flops_per_image = train.global_batch / step, main.isolated.flops_per_image
    watts = [rank.power.get("watts") for rank in ranks]
    return Profile(
        model=config.model.name,
        size=config.data.size,
        precision=train.precision,
        zero_stage=train.zero_stage,
        loader=config.data.loader,
        device=device.type,
        world=len(ranks),
        global_batch=train.global_batch,
        micros=micros,
        steps=steps,
        parameters=main.isolated.parameters,
        alone=alone,
        step=step,
        images_per_s=images_per_s,
        measured_step=statistics.fmean(rank.training.measured_step for rank in ranks),
        together=together,
        collectives=main.training.collectives,
        bytes_sent=statistics.fmean(sum(size for _, size in collectives.values()) for collectives in traffic),
        messages=statistics.fmean(sum(calls for calls, _ in collectives.values()) for collectives in traffic),
        flops_per_image=flops_per_image,
        matrix_rate=matrix_rate,
        memory={kind: max(rank.memory[kind] for rank in ranks) for kind in main.memory},
        power=main.power,
        hosts=len({rank.host for rank in ranks}),
        # a scheduler may give each rank of a host different cores
        cores=len(set().union(*(rank.cores for rank in ranks if rank.host == main.host))),
        threads=torch.get_num_threads(),
        joules_per_image=sum(watts) * step / train.global_batch if all(watts) else None,  # type: ignore[arg-type]
        mfu=flops_per_image * images_per_s / (len(ranks) * matrix_rate),
        bottleneck=find_bottleneck(alone, together),
    )


def _stages_alone(ranks: list[RankMeasurement], micros: int) -> dict[str, float]:
    """Stage → seconds per step if nothing else runs, the mean over the ranks."""
    return {
        stage: statistics.fmean(rank.isolated.seconds[stage] for rank in ranks)
        * (1 if stage in STAGES_OF_STEP else micros)
        for stage in ranks[0].isolated.seconds
    }


def _stages_together(ranks: list[RankMeasurement]) -> dict[str, float]:
    """Stage → seconds in a real step, the mean over the ranks."""
    stages = sorted({stage for rank in ranks for stage in rank.training.stages}, key=STAGES.index)
    return {stage: statistics.fmean(rank.training.stages.get(stage, 0.0) for rank in ranks) for stage in stages}
