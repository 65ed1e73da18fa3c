"""The training loop beside a bare DeepSpeed loop: same network, optimiser, settings and noise images, in one run.

``python -m benchmarks.loop_overhead [--ranks 2] [--model convnext_atto] [--size 96] [--batch 16]``. The product runs
its entry point with ``data.loader=synthetic``: sample order, augmentation decisions, agreement of the ranks,
heartbeats, metrics.jsonl, checks for non-finite values. The bare loop is that of DeepSpeed's tutorial, with the same
gradient clipping and learning rate. Both run alternately. The table compares the median step and the fastest tenth,
which other load on the machine affects least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path

from benchmarks.common import main_rank_output, training_shards
from brain_dist.errors import run
from launch.local import gpus

WARMUP = 5  # steps that are not timed


def main() -> int:
    """Run both loops ``--repeats`` times and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ranks", type=int, default=gpus() or 2)
    parser.add_argument("--model", default="convnext_atto")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16, help="images per rank")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--zero", type=int, default=2, choices=(0, 1, 2, 3))
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.settings:
        run_bare_loop(json.loads(arguments.settings), arguments.steps)
        return 0
    seconds: dict[str, list[list[float]]] = {"bare": [], "product": []}
    with tempfile.TemporaryDirectory() as folder:
        shards = training_shards(Path(folder), arguments.ranks * arguments.batch * arguments.steps)
        for repeat in range(arguments.repeats):
            settings = run_settings(arguments, shards, Path(folder), f"run-{repeat}")
            for loop in ("bare", "product") if repeat % 2 else ("product", "bare"):
                seconds[loop].append(step_seconds(loop, settings, arguments, Path(folder) / f"run-{repeat}"))
    print(
        f"{arguments.model} {arguments.size}², {arguments.ranks} ranks × {arguments.batch}, ZeRO {arguments.zero}, amp"
    )
    print_table(seconds)
    return 0


def run_settings(arguments: argparse.Namespace, shards: Path, runs: Path, name: str) -> list[str]:
    """Settings of both loops, as flags of ``brain-dist train``."""
    batch = arguments.batch
    return [
        *("--data.loader", "synthetic", "--data.size", str(arguments.size), "--data.shards", str(shards)),
        *("--model.name", arguments.model, "--train.precision", "amp", "--train.zero_stage", str(arguments.zero)),
        *("--train.global_batch", str(batch * arguments.ranks), "--train.micro_batch", str(batch)),
        *("--train.epochs", "1", "--train.eval_every", "0", "--train.save_every", "1000000", "--track.wandb", "off"),
        *("--run.dir", str(runs), "--run.name", name),
    ]


def step_seconds(loop: str, settings: list[str], arguments: argparse.Namespace, folder: Path) -> list[float]:
    """Seconds of each timed step of one start, on the main rank; ``folder`` is the run's."""
    if loop == "bare":
        command = [sys.executable, "-m", "benchmarks.loop_overhead", "--settings", json.dumps(settings)]
        output = main_rank_output([*command, "--steps", str(arguments.steps)], arguments.ranks)
        return differences(json.loads(output.splitlines()[-1]))
    main_rank_output([sys.executable, "-m", "brain_dist.train", *settings], arguments.ranks)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return differences([json.loads(line)["time"] for line in lines][: arguments.steps])


def differences(times: list[float]) -> list[float]:
    """Durations of the timed steps, from the time at the end of each step."""
    return [after - before for before, after in zip(times[WARMUP - 1 :], times[WARMUP:], strict=False)]


def print_table(seconds: dict[str, list[list[float]]]) -> None:
    """Print median and fastest tenth of each loop, and the ratio of each pair of starts."""
    steps = {loop: list(chain(*starts)) for loop, starts in seconds.items()}
    times = {loop: (statistics.median(s), statistics.quantiles(s, n=10)[0]) for loop, s in steps.items()}
    print(f"{'loop':9}{'median step':>14}{'of bare':>9}{'fastest tenth':>16}{'of bare':>9}{'steps':>7}")
    for loop, (median, fast) in times.items():
        ratios = median / times["bare"][0], fast / times["bare"][1]
        print(f"{loop:9}{1000 * median:11.1f} ms{ratios[0]:9.3f}{1000 * fast:13.1f} ms{ratios[1]:9.3f}"
              f"{len(steps[loop]):7}")  # fmt: skip
    starts = zip(seconds["product"], seconds["bare"], strict=True)
    pairs = [statistics.median(product) / statistics.median(bare) for product, bare in starts]
    print(f"product / bare of each pair of starts: {', '.join(f'{ratio:.3f}' for ratio in pairs)}")


def run_bare_loop(settings: list[str], steps: int) -> None:
    """One rank of the bare loop; prints the time at the end of each step."""
    import torch
    from torch.nn.functional import cross_entropy

    from brain_dist.config import load
    from brain_dist.networks.create import create_network
    from brain_dist.ranks.device import choose_device
    from brain_dist.ranks.group import process_group
    from brain_dist.ranks.world import discover
    from brain_dist.training.deepspeed_setup import deepspeed_config, import_deepspeed
    from brain_dist.training.optim import create_optimizer

    config, world = load(settings), discover()
    device = choose_device(world, "auto")
    with process_group(world, device):
        deepspeed = import_deepspeed(world, device)
        model = create_network(config.model, 4, seed=0).to(device)
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=create_optimizer(config.optim, model), config=deepspeed_config(config, world.size),
            dist_init_required=False,
        )  # fmt: skip
        batch, size = config.train.micro_batch, config.data.size
        image = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
        label = torch.randint(0, 4, (batch,), device=device)
        times = []
        for _ in range(steps):
            loss = cross_entropy(engine(image).float(), label, label_smoothing=0.1)
            engine.backward(loss)
            engine.step()
            loss.item()  # as every loop that logs its loss does
            times.append(time.perf_counter())
    print(json.dumps(times))


if __name__ == "__main__":
    raise SystemExit(run(main))
