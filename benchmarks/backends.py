"""DeepSpeed against Hugging Face accelerate (DDP): the same model, optimiser and synthetic batches, side by side in
one run.

``python -m benchmarks.backends [--ranks 2] [--model convnext_atto] [--size 96] [--batch 16]`` starts each back end in
turn, several times over, and prints medians of images/s and their ratios to accelerate. The loader is synthetic, so
only the step is measured; both step fp32 weights under bf16 autocast, with the same clipping.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time

from launch.local import Part, gpus, start

UNTIL_THE_END = contextlib.ExitStack()  # a process group that is collected is a group that is gone
BACKENDS = ("accelerate", "zero0", "zero1", "zero2")


def main() -> None:
    """Run every back end ``--repeats`` times, interleaved, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ranks", type=int, default=gpus() or 2)
    parser.add_argument("--model", default="convnext_atto")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16, help="images a rank")
    parser.add_argument("--steps", type=int, default=30, help="timed steps, after five untimed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", choices=BACKENDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    rates: dict[str, list[float]] = {name: [] for name in BACKENDS}
    for _ in range(arguments.repeats):
        for name in BACKENDS:
            rates[name].append(measure(name, arguments))
    base = statistics.median(rates["accelerate"])
    print(f"{arguments.model} {arguments.size}², {arguments.ranks} ranks × {arguments.batch}, {arguments.steps} steps")
    print(f"{'back end':12}{'images/s':>10}{'ratio':>8}   each run")
    for name, values in rates.items():
        each = " ".join(f"{value:.0f}" for value in values)
        print(f"{name:12}{statistics.median(values):10.1f}{statistics.median(values) / base:8.3f}   {each}")


def measure(backend: str, arguments: argparse.Namespace) -> float:
    """Images/s over all ranks of one start of ``backend``."""
    words = [sys.executable, "-m", "benchmarks.backends", "--worker", backend, "--ranks", str(arguments.ranks)]
    for name in ("model", "size", "batch", "steps"):
        words += [f"--{name}", str(getattr(arguments, name))]
    started = start(words, Part(arguments.ranks), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    printed = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{backend} failed; run it by hand to see why: {' '.join(words)}")
    return float(json.loads(printed[0].splitlines()[-1])["images_per_s"])


def work(arguments: argparse.Namespace) -> None:
    """One rank: the main one prints a JSON line."""
    import dataclasses

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
    draw = torch.Generator().manual_seed(world.rank)
    image = torch.randint(
        0, 256, (arguments.batch, 1, arguments.size, arguments.size), dtype=torch.uint8, generator=draw
    )
    label = torch.randint(0, 4, (arguments.batch,), generator=draw)
    if arguments.worker == "accelerate":
        step = accelerate_step(config, model, image, label)
    else:
        train = dataclasses.replace(config.train, zero_stage=int(arguments.worker[-1]))
        step = deepspeed_step(dataclasses.replace(config, train=train), model, image, label, world, device)
    for _ in range(5):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(arguments.steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    if world.is_main:
        print(json.dumps({"images_per_s": arguments.steps * arguments.batch * world.size / seconds}), flush=True)


def accelerate_step(config, model, image, label):  # type: ignore[no-untyped-def]
    """A step as accelerate's users write it."""
    import torch
    from accelerate import Accelerator

    from brain_dist.stream.normalize import Normalize
    from brain_dist.training.optim import create_optimizer

    accelerator = Accelerator(mixed_precision="bf16", cpu=not torch.cuda.is_available())
    ready, optimiser = accelerator.prepare(model, create_optimizer(config.optim, model))
    image, label = image.to(accelerator.device), label.to(accelerator.device)
    normalize = Normalize(config.data, 3, accelerator.device, torch.float32)

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(ready(normalize(image)).float(), label, label_smoothing=0.1)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(ready.parameters(), config.optim.clip)
        optimiser.step()
        optimiser.zero_grad()

    return step


def deepspeed_step(config, model, image, label, world, device):  # type: ignore[no-untyped-def]
    """The product's own engine on the same batch."""
    import numpy as np

    from brain_dist.ranks.group import process_group
    from brain_dist.stream.batch import Batch
    from brain_dist.stream.plan import MicroBatch
    from brain_dist.training.engine import Engine

    UNTIL_THE_END.enter_context(process_group(world, device))
    engine = Engine(config, model, world, device)
    count = len(label)
    rows, ones = np.arange(count), np.ones(count, dtype=np.float32)
    micro = MicroBatch(0, 0, 0, rows, ones > 0, rows + world.rank * count, rows, ones, count * world.size)
    batch = Batch.of(image.to(device), micro, label.numpy())
    return lambda: engine.step([batch], lr=1e-3)


if __name__ == "__main__":
    main()
