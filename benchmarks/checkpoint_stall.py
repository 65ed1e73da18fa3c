"""Time that training stops for a checkpoint, beside DeepSpeed's own save, on one rank.

``python -m benchmarks.checkpoint_stall [--model convnext_base] [--saves 3]`` trains on noise images and saves in turn:
in the background (the product), in the foreground, and with DeepSpeed's ``engine.save_checkpoint`` followed by a sync
to the disk, because a checkpoint is complete only then.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from brain_dist.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from brain_dist.networks.create import create_network
from brain_dist.ranks.device import choose_device
from brain_dist.ranks.group import process_group
from brain_dist.ranks.world import discover
from brain_dist.stream.batch import Batch
from brain_dist.stream.plan import TrainingPlan
from brain_dist.training.engine import Engine
from brain_dist.training.saving import Saver


def main() -> None:
    """Save in each way in turn; print medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="convnext_base")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    arguments = parser.parse_args()
    world = discover({})
    device = choose_device(world, "auto")
    config = Config(
        run=RunConfig(device="auto"),
        data=DataConfig(size=32),
        model=ModelConfig(name=arguments.model),
        optim=OptimConfig(ema=0.999),
        train=TrainConfig(global_batch=2, micro_batch=2, precision="amp", zero_stage=2),
    )
    with process_group(world, device), tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        engine = Engine(config, create_network(config.model, 4, seed=0), world, device)
        rows = np.arange(2)
        zero = rows * 0
        plan = TrainingPlan(rows=rows, shard=zero, label=zero, seed=0, epochs=1, global_batch=2, micro_batch=2)
        micro = next(plan.micro_batches(rank=0, world_size=1))
        batch = Batch.of(torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8, device=device), micro, rows)

        def step() -> float:
            start = time.perf_counter()
            engine.step([batch], lr=1e-5).item()
            return time.perf_counter() - start

        saver = Saver(Path(folder) / "checkpoints", engine, {}, keep=1)
        seconds: dict[str, list[float]] = {name: [] for name in ("stall", "complete", "foreground", "deepspeed")}
        idle_steps, busy_steps = [step() for _ in range(5)][1:], []  # without and with a save in the background
        for number in range(arguments.saves):
            start = time.perf_counter()
            saver.begin(2 * number)
            seconds["stall"].append(time.perf_counter() - start)
            while saver.writing:
                busy_steps.append(step())
            saver.finish()
            seconds["complete"].append(time.perf_counter() - start)

            start = time.perf_counter()
            saver.begin(2 * number + 1)
            saver.finish()
            seconds["foreground"].append(time.perf_counter() - start)

            start = time.perf_counter()
            engine.deepspeed.save_checkpoint(f"{folder}/ds", tag="0")
            os.sync()
            seconds["deepspeed"].append(time.perf_counter() - start)
            shutil.rmtree(f"{folder}/ds")
            idle_steps += [step() for _ in range(4)]
        size = saver.bytes
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{arguments.model}, {engine.parameters / 1e6:.1f} M parameters, {size / 1e9:.2f} GB a save, {device.type}")
    print(f"in the background: stalls {median['stall']:.2f} s, complete after {median['complete']:.2f} s")
    print(
        f"in the foreground: stalls {median['foreground']:.2f} s ({median['foreground'] / median['stall']:.1f} times)"
    )
    print(f"DeepSpeed's own:   stalls {median['deepspeed']:.2f} s, without EMA weights and checksums")
    ratio = statistics.median(busy_steps) / statistics.median(idle_steps)
    print(f"a step during a background save takes {ratio:.2f} times as long ({len(busy_steps)} steps; same cores)")


if __name__ == "__main__":
    main()
