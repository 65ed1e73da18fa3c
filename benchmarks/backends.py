"""DeepSpeed beside Hugging Face accelerate (DDP): same model, optimiser and synthetic batches, in one run.

``python -m benchmarks.backends [--ranks 2] [--model convnext_atto] [--size 96] [--batch 16]`` runs each back end in
turn, several times, and prints the median images/s and its ratio to accelerate's. The batch is synthetic, so only the
step is measured. All keep fp32 weights under bf16 autocast, with the same gradient clipping.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable

from benchmarks.support.common import main_rank_output
from brain_dist.errors import run
from launch.local import gpus

BACKENDS = ("accelerate", "zero0", "zero1", "zero2")
WARMUP = 5  # steps that are not timed
PROCESS_GROUP = contextlib.ExitStack()  # keeps the process group open until the process ends


def main() -> int:
    """Run every back end ``--repeats`` times and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ranks", type=int, default=gpus() or 2)
    parser.add_argument("--model", default="convnext_atto")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16, help="images per rank")
    parser.add_argument("--steps", type=int, default=30, help="timed steps, after five untimed ones")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", choices=BACKENDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        run_worker(arguments)
        return 0
    rates: dict[str, list[float]] = {name: [] for name in BACKENDS}
    for _ in range(arguments.repeats):
        for name in BACKENDS:
            rates[name].append(measure(name, arguments))
    baseline = statistics.median(rates["accelerate"])
    print(f"{arguments.model} {arguments.size}², {arguments.ranks} ranks × {arguments.batch}, {arguments.steps} steps")
    print(f"{'back end':12}{'images/s':>10}{'ratio':>8}   each run")
    for name, values in rates.items():
        median, runs = statistics.median(values), " ".join(f"{value:.0f}" for value in values)
        print(f"{name:12}{median:10.1f}{median / baseline:8.3f}   {runs}")
    return 0


def measure(backend: str, arguments: argparse.Namespace) -> float:
    """Images/s of all ranks in one start of ``backend``."""
    command = [sys.executable, "-m", "benchmarks.backends", "--worker", backend, "--ranks", str(arguments.ranks)]
    for name in ("model", "size", "batch", "steps"):
        command += [f"--{name}", str(getattr(arguments, name))]
    return float(json.loads(main_rank_output(command, arguments.ranks).splitlines()[-1])["images_per_s"])


def run_worker(arguments: argparse.Namespace) -> None:
    """One rank; the main one prints a line of JSON."""
    import torch

    from brain_dist.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
    from brain_dist.networks.create import create_network
    from brain_dist.ranks.device import choose_device
    from brain_dist.ranks.world import discover

    world = discover()
    device = choose_device(world, "auto")
    config = Config(
        data=DataConfig(size=arguments.size, loader="synthetic"),
        model=ModelConfig(name=arguments.model),
        optim=OptimConfig(lr=1e-3, clip=1.0),
        train=TrainConfig(global_batch=arguments.batch * world.size, micro_batch=arguments.batch, precision="amp"),
    )
    model = create_network(config.model, 4, seed=0)
    generator = torch.Generator().manual_seed(world.rank)
    shape = (arguments.batch, 1, arguments.size, arguments.size)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    label = torch.randint(0, 4, (arguments.batch,), generator=generator)
    if arguments.worker == "accelerate":
        step = accelerate_step(config, model, image, label)
    else:
        train = dataclasses.replace(config.train, zero_stage=int(arguments.worker[-1]))
        step = deepspeed_step(dataclasses.replace(config, train=train), model, image, label, world, device)
    run_steps(step, WARMUP, device)
    seconds = run_steps(step, arguments.steps, device)
    if world.is_main:
        print(json.dumps({"images_per_s": arguments.steps * arguments.batch * world.size / seconds}), flush=True)


def run_steps(step: Callable[[], object], count: int, device) -> float:
    """Seconds of ``count`` steps."""
    import torch

    start = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def accelerate_step(config, model, image, label):
    """A training step as in accelerate's documentation."""
    import torch
    from accelerate import Accelerator

    from brain_dist.stream.normalize import Normalize
    from brain_dist.training.optim import create_optimizer

    accelerator = Accelerator(mixed_precision="bf16", cpu=not torch.cuda.is_available())
    prepared, optimiser = accelerator.prepare(model, create_optimizer(config.optim, model))
    image, label = image.to(accelerator.device), label.to(accelerator.device)
    normalize = Normalize(config.data, 3, accelerator.device, torch.float32)

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(prepared(normalize(image)).float(), label, label_smoothing=0.1)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(prepared.parameters(), config.optim.clip)
        optimiser.step()
        optimiser.zero_grad()

    return step


def deepspeed_step(config, model, image, label, world, device):
    """A step of the product's engine on the same batch."""
    import numpy as np

    from brain_dist.ranks.group import process_group
    from brain_dist.stream.batch import Batch
    from brain_dist.stream.plan import MicroBatch
    from brain_dist.training.engine import Engine

    PROCESS_GROUP.enter_context(process_group(world, device))
    engine = Engine(config, model, world, device)
    count = len(label)
    rows, ones = np.arange(count), np.ones(count, dtype=np.float32)
    micro = MicroBatch(0, 0, 0, rows, ones > 0, rows + world.rank * count, rows, ones, count * world.size)
    batch = Batch.of(image.to(device), micro, label.numpy())
    return lambda: engine.step([batch], lr=1e-3)


if __name__ == "__main__":
    raise SystemExit(run(main))
