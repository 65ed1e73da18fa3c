"""How long training stands still for a checkpoint, beside DeepSpeed's own save, on one rank.

``python -m benchmarks.checkpoint_stall [--model convnext_base] [--saves 3]`` trains on noise and saves in turn: beside
the training (the product), the same but waited for, and ``engine.save_checkpoint`` of DeepSpeed, which is synced to the
disk too, as no checkpoint counts before that.
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
    """Save in each way in turn and print medians."""
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
            began = time.perf_counter()
            engine.step([batch], lr=1e-5).item()
            return time.perf_counter() - began

        saver = Saver(Path(folder) / "checkpoints", engine, {}, keep=1)
        found: dict[str, list[float]] = {name: [] for name in ("copied", "complete", "waited", "deepspeed")}
        quiet, beside = [step() for _ in range(5)][1:], []
        for number in range(arguments.saves):
            began = time.perf_counter()
            saver.begin(2 * number)
            found["copied"].append(time.perf_counter() - began)
            while saver.pending:
                beside.append(step())
            saver.finish()
            found["complete"].append(time.perf_counter() - began)

            began = time.perf_counter()
            saver.begin(2 * number + 1)
            saver.finish()
            found["waited"].append(time.perf_counter() - began)

            began = time.perf_counter()
            engine.deepspeed.save_checkpoint(f"{folder}/ds", tag="0")
            os.sync()
            found["deepspeed"].append(time.perf_counter() - began)
            shutil.rmtree(f"{folder}/ds")
            quiet += [step() for _ in range(4)]
        size = saver.bytes
    median = {name: statistics.median(values) for name, values in found.items()}
    print(f"{arguments.model}, {engine.parameters / 1e6:.1f} M parameters, {size / 1e9:.2f} GB a save, {device.type}")
    print(f"beside the training: stalls {median['copied']:.2f} s, complete after {median['complete']:.2f} s")
    print(f"waited for:          stalls {median['waited']:.2f} s ({median['waited'] / median['copied']:.1f} times)")
    print(f"DeepSpeed's own:     stalls {median['deepspeed']:.2f} s, without the average and checksums")
    slower = statistics.median(beside) / statistics.median(quiet)
    print(f"a step while it writes takes {slower:.2f} times as long ({len(beside)} steps; it shares the cores)")


if __name__ == "__main__":
    main()
