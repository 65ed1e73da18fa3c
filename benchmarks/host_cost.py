"""CPU time of a training step on the host: what remains when the network itself costs next to nothing.

``python -m benchmarks.host_cost [--config configs/convnext_base.yaml] [--steps 30] [SETTING …]``. ConvNeXt-Base's 36
blocks and 344 parameters with widths of 8 to 64, on one rank and one thread of the CPU. A GPU runs the network beside
the host; a step can't take less than this time. It is about the same on a GPU machine, as far as the core is.

One line per stage and precision: forward with the loss, backward with DeepSpeed's hooks, DeepSpeed's step (norm, clip,
optimiser), and the rest of the step (average of weights, checks, seeds).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist.config import Config, load
from brain_dist.errors import run
from brain_dist.stream.batch import Batch
from brain_dist.stream.plan import TrainingPlan

WIDTHS = (8, 16, 32, 64)
WARMUP = 4  # steps that are not measured
CASES = [(2, "bf16"), (2, "amp"), (1, "bf16"), (0, "bf16"), (0, "amp")]  # ZeRO stage, precision


def main() -> int:
    """Measure all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", type=Path, default=Path("configs/convnext_base.yaml"))
    parser.add_argument("--steps", type=int, default=30)
    arguments, settings = parser.parse_known_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    parts = ("forward", "backward", "step", "rest", "whole")
    print(f"{'ZeRO':6}{'precision':11}{'groups':>7}" + "".join(f"{part:>10}" for part in parts) + "  CPU ms")
    for stage, precision in CASES:
        groups, seconds = measure(toy_config(arguments.config, stage, precision, settings), arguments.steps)
        seconds["rest"] = 2 * seconds["whole"] - sum(seconds.values())
        numbers = "".join(f"{1000 * seconds[part]:10.1f}" for part in parts)
        print(f"{stage:<6}{precision:11}{groups:7}{numbers}", flush=True)
    return 0


def toy_config(file: Path, stage: int, precision: str, settings: list[str]) -> Config:
    """The configuration of ``file`` with a narrow network, one image of 32² per step, and no loader."""
    toy = [
        *("--config", str(file), "--data.shards", "none", "--data.size", "32", "--run.device", "cpu"),
        *("--model.pretrained", "false", "--train.global_batch", "1", "--train.micro_batch", "1"),
        *("--train.zero_stage", str(stage), "--train.precision", precision),
    ]
    config = load([*toy, *settings])
    return replace(config, model=replace(config.model, options={**config.model.options, "dims": list(WIDTHS)}))


def measure(config: Config, steps: int) -> tuple[int, dict[str, float]]:
    """Number of parameter groups, and the median CPU seconds of each part of a step and of the ``whole`` step."""
    from brain_dist.networks.create import create_network
    from brain_dist.ranks.device import choose_device
    from brain_dist.ranks.group import process_group
    from brain_dist.ranks.world import discover
    from brain_dist.training.engine import Engine

    world = discover()
    device = choose_device(world, config.run.device)
    with process_group(world, device):
        engine = Engine(config, create_network(config.model, 4, seed=0), world, device)
        seconds: defaultdict[str, list[float]] = defaultdict(list)
        for part in ("forward", "backward", "step"):
            setattr(engine.deepspeed, part, timed(getattr(engine.deepspeed, part), seconds[part]))
        whole_step = timed(engine.step, seconds["whole"])
        for batch in noise_batches(config, WARMUP + steps, device):
            whole_step([batch], lr=1e-4)
        groups = len(engine.deepspeed.optimizer.param_groups)
    return groups, {part: statistics.median(values[WARMUP:]) for part, values in seconds.items()}


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """``function``, appending the CPU time of each call to ``seconds``."""

    def call(*arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            seconds.append(time.process_time() - start)

    return call


def noise_batches(config: Config, steps: int, device: Any) -> Iterator[Batch]:
    """One micro-batch of noise per step."""
    import torch

    rows = np.arange(steps)
    plan = TrainingPlan(rows=rows, shard=rows, label=rows % 4, seed=0, epochs=1, global_batch=1, micro_batch=1)
    image = torch.randint(0, 256, (1, 3 if config.data.color == "rgb" else 1, 32, 32), dtype=torch.uint8, device=device)
    for micro in plan.micro_batches(0, 1):
        yield Batch.of(image, micro, rows % 4)


if __name__ == "__main__":
    raise SystemExit(run(main))
