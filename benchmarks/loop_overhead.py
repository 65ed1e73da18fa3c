"""The training loop beside a bare DeepSpeed loop: CPU time of alternating steps in the same processes.

``python -m benchmarks.loop_overhead [--ranks 2] [--model convnext_atto] [--size 96] [--batch 16] [--steps 240]``. Each
rank runs the product's entry point with ``data.loader=synthetic``: sample order, augmentation decisions, agreement of
the ranks, heartbeats, metrics.jsonl, checks for non-finite values. After each of its steps, the same process takes one
step of a bare loop, that of DeepSpeed's tutorial, with an engine of its own: same network, optimiser, settings and
gradient clipping, noise images. The table compares the CPU time of the main rank's process in all its threads, pair by
pair, because other load on the machine disturbs it least. The exit code is 1 if the loop costs more than 1 % of a step
of 250 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.support.common import main_rank_output, median_interval, training_shards
from brain_dist.config import load
from brain_dist.errors import EXIT_FAULT, run
from launch.local import gpus

if TYPE_CHECKING:
    from brain_dist.training.engine import Engine
    from brain_dist.training.loop import Trainer

WARMUP = 10  # pairs that are not counted
STEPS_PER_EPOCH = 20
GOAL, STEP = 0.01, 0.25  # the loop may cost this share of a step of so many seconds


def main() -> int:
    """Run the pairs of steps and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ranks", type=int, default=gpus() or 2)
    parser.add_argument("--model", default="convnext_atto")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16, help="images per rank")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--zero", type=int, default=2, choices=(0, 1, 2, 3))
    parser.add_argument("--precision", default="amp", help="default: amp; a processor without bf16 needs fp32")
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.settings:
        run_rank(json.loads(arguments.settings))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        shards = training_shards(Path(folder), arguments.ranks * arguments.batch * STEPS_PER_EPOCH)
        settings = run_settings(arguments, shards, Path(folder))
        command = [sys.executable, "-m", "benchmarks.loop_overhead", "--settings", json.dumps(settings)]
        pairs = json.loads(main_rank_output(command, arguments.ranks).splitlines()[-1])
    print(
        f"{arguments.model} {arguments.size}², {arguments.ranks} ranks × {arguments.batch}, ZeRO {arguments.zero},"
        f" {arguments.precision}; CPU time of the main rank, {len(pairs)} pairs of steps"
    )
    return EXIT_FAULT if print_table(np.array(pairs)) > GOAL * STEP else 0


def run_settings(arguments: argparse.Namespace, shards: Path, runs: Path) -> list[str]:
    """Settings of both loops, as flags of ``brain-dist train``."""
    batch, epochs = arguments.batch, -(-arguments.steps // STEPS_PER_EPOCH)
    return [
        *("--data.loader", "synthetic", "--data.size", str(arguments.size), "--data.shards", str(shards)),
        *("--model.name", arguments.model, "--train.precision", arguments.precision),
        *("--train.zero_stage", str(arguments.zero)),
        *("--train.global_batch", str(batch * arguments.ranks), "--train.micro_batch", str(batch)),
        *("--train.epochs", str(epochs), "--train.eval_every", "0", "--train.save_every", "1000000"),
        *("--track.wandb", "off", "--run.dir", str(runs), "--run.name", "run"),
    ]


def print_table(pairs: np.ndarray) -> float:
    """Print the CPU seconds of ``pairs`` (float [N, 2]: product, bare); return the median difference in seconds."""
    product, bare = pairs.T
    difference = product - bare
    low, high = median_interval(difference)
    cost = float(np.median(difference))
    print("| product | bare | difference | 95 % interval | of bare | of a step of 250 ms |\n|--:|--:|--:|--:|--:|--:|")
    print(
        f"| {1000 * statistics.median(product):.1f} ms | {1000 * statistics.median(bare):.1f} ms"
        f" | {1000 * cost:.2f} ms | {1000 * low:.2f} to {1000 * high:.2f} ms"
        f" | {cost / statistics.median(bare):.2%} | {cost / STEP:.2%} (goal: ≤ {GOAL:.0%}) |"
    )
    return cost


def run_rank(settings: list[str]) -> None:
    """One rank: train with a bare step after each step; prints the CPU seconds of each pair."""
    from brain_dist.ranks.stopping import StopRequest
    from brain_dist.training.loop import Trainer
    from brain_dist.training.start import run_training

    pairs: list[tuple[float, float]] = []
    original = Trainer.train_step
    bare: Callable[[], None] | None = None
    begin = 0.0

    def train_step(self: Trainer, step: int) -> None:
        nonlocal bare, begin
        if bare is None:
            bare = bare_step(self.engine)
            begin = time.process_time()
        original(self, step)
        middle = time.process_time()
        bare()
        end = time.process_time()
        pairs.append((middle - begin, end - middle))
        begin = end  # what the loop does between two steps belongs to the product

    Trainer.train_step = train_step  # type: ignore[method-assign]
    run_training(load(settings), StopRequest(), command=["loop_overhead"])
    print(json.dumps(pairs[WARMUP:]))


def bare_step(engine: Engine) -> Callable[[], None]:
    """A step of DeepSpeed's tutorial, with the settings of ``engine``."""
    import deepspeed
    import torch
    from torch.nn.functional import cross_entropy

    from brain_dist.networks.create import create_network
    from brain_dist.training.deepspeed_setup import deepspeed_config
    from brain_dist.training.optim import create_optimizer

    config, device = engine.config, engine.device
    model = create_network(config.model, 4, seed=0).to(device)
    bare, *_ = deepspeed.initialize(
        model=model, optimizer=create_optimizer(config.optim, model),
        config=deepspeed_config(config, engine.world.size), dist_init_required=False,
    )  # fmt: skip
    batch, size = config.train.micro_batch, config.data.size
    image = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    label = torch.randint(0, 4, (batch,), device=device)

    def step() -> None:
        loss = cross_entropy(bare(image).float(), label, label_smoothing=config.optim.label_smoothing)
        bare.backward(loss)
        bare.step()
        loss.item()  # as every loop that logs its loss does

    return step


if __name__ == "__main__":
    raise SystemExit(run(main))
