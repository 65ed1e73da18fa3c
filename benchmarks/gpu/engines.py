"""Engines of the product in this process, and the rate of their steps."""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.frame import Check, release_all_tensors
from benchmarks.gpu.settings import create_config

if TYPE_CHECKING:
    import torch

    from brain_dist.config import Config
    from brain_dist.ranks.world import World
    from brain_dist.stream.batch import Batch
    from brain_dist.training.engine import Engine


@dataclass
class Engines:
    """Creates engines in one process group.

    Attributes:
        check: the stage.
        world: this process, the only rank.
        device: where the engines compute.
    """

    check: Check
    world: World
    device: torch.device
    _networks: dict[Any, torch.nn.Module] = field(default_factory=dict)

    def create(self, config: Config) -> Engine:
        """A new engine with the initial weights of the run's seed.

        Networks are drawn once and then copied: drawing 88 million weights takes seconds.
        """
        from brain_dist.networks.create import create_network
        from brain_dist.training.engine import Engine

        key = str(replace(config.model, compile=False))
        if key not in self._networks:
            self._networks[key] = create_network(config.model, 4, seed=0)
        return Engine(config, copy.deepcopy(self._networks[key]), self.world, self.device)

    def batches(self, config: Config) -> Iterator[Batch]:
        """Training batches of ``config``."""
        from brain_dist.store.dataset import open_dataset
        from brain_dist.stream.batches import training_batches

        return training_batches(config, open_dataset(config.data.shards), self.world, self.device, first_step=0)

    def rate(self, engine: Engine, batches: Iterator[Batch], steps: int, warmup: int) -> dict[str, float]:
        """Images per second of optimiser steps as in training, which waits for the device only where the engine does.

        Returns:
            images_per_s; step_ms (median); slowest_ms; peak_gib.
        """
        for _ in range(warmup):
            take_step(engine, batches)
        times = [self.check.now()]
        for _ in range(steps):
            take_step(engine, batches)
            times.append(time.perf_counter())
        end = self.check.now()
        seconds = [after - before for before, after in pairwise(times)]
        images = steps * engine.config.train.global_batch
        return {
            "images_per_s": images / (end - times[0]),
            "step_ms": 1e3 * statistics.median(seconds),
            "slowest_ms": 1e3 * max(seconds),
            "peak_gib": self.check.peak_gib(),
        }

    def measure(self, what: str, settings: Mapping[str, Any], *, benchmark: bool = True) -> None:
        """Record the rate of a new engine.

        Args:
            what: name of the measurement.
            settings: as in :func:`create_config`, and optionally ``steps`` and ``warm`` (steps before the timed ones).
            benchmark: let cuDNN time its kernels and choose the fastest.
        """
        import torch

        release_all_tensors()
        held_before = 0.0 if self.check.dry else torch.cuda.memory_allocated() / 2**30
        sizes = self.check.sizes

        def measure() -> dict[str, float]:
            torch.backends.cudnn.benchmark = benchmark
            config = create_config(self.check, settings)
            engine, batches = self.create(config), self.batches(config)
            rate = self.rate(engine, batches, settings.get("steps", sizes.steps), settings.get("warm", sizes.warmup))
            return {"held_before_gib": held_before, **rate}

        self.check.attempt(what, measure, cudnn_benchmark=benchmark, **settings)


@contextmanager
def engines(check: Check) -> Iterator[Engines]:
    """A process group of this process alone, for the engines of a stage."""
    from brain_dist.ranks.group import process_group
    from brain_dist.ranks.world import discover

    device, world = check.device(), discover({})
    with process_group(world, device):
        yield Engines(check, world, device)


def take_step(engine: Engine, batches: Iterator[Batch]) -> None:
    """One optimiser step on the next batches."""
    engine.step([next(batches) for _ in range(engine.accumulation_steps)], lr=1e-5)


def no_timer(check: Check) -> str:
    """A file that turns off DeepSpeed's throughput timer, which waits for the device in each forward pass and step."""
    path = check.kit / "quiet.json"
    path.write_text(json.dumps({"timers": {"throughput": {"enabled": False}}}))
    return str(path)
