"""What the training loop costs beside a bare DeepSpeed loop: same network, optimiser, settings and noise, in one run.

``python -m benchmarks.loop_overhead [--ranks 2] [--model convnext_atto] [--size 96] [--batch 16]``. The product is its
real entry point with ``data.loader=synthetic``: plan, augmentation's decisions, agreement of the ranks, signs of life,
metrics.jsonl, skip checks. The bare loop is what DeepSpeed's tutorial shows, with the same clipping and learning rate.
Both are started in turn; the table compares the median step, and the fastest tenth, which whatever else runs on the
machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path

from launch.local import Part, gpus, start

WARM = 5  # steps that are not counted


def main() -> None:
    """Start both ``--repeats`` times, interleaved, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ranks", type=int, default=gpus() or 2)
    parser.add_argument("--model", default="convnext_atto")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16, help="images a rank")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--zero", type=int, default=2, choices=(0, 1, 2, 3))
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.settings:
        bare(json.loads(arguments.settings), arguments.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        seconds: dict[str, list[list[float]]] = {"bare": [], "product": []}
        shards = phantoms(Path(folder), arguments.ranks * arguments.batch * arguments.steps)
        for repeat in range(arguments.repeats):
            settings = words(arguments, shards, Path(folder), f"run-{repeat}")
            turns = ("bare", "product") if repeat % 2 else ("product", "bare")
            for kind in turns:
                seconds[kind].append(steps_of(kind, settings, arguments, Path(folder) / f"run-{repeat}"))
    all_of = {kind: list(chain(*starts)) for kind, starts in seconds.items()}
    found = {kind: (statistics.median(each), statistics.quantiles(each, n=10)[0]) for kind, each in all_of.items()}
    each = [
        statistics.median(p) / statistics.median(b) for p, b in zip(seconds["product"], seconds["bare"], strict=True)
    ]
    print(
        f"{arguments.model} {arguments.size}², {arguments.ranks} ranks × {arguments.batch}, ZeRO {arguments.zero}, amp"
    )
    print(f"{'loop':9}{'median step':>14}{'of bare':>9}{'fastest tenth':>16}{'of bare':>9}{'steps':>7}")
    for kind, (median, fast) in found.items():
        shares = [here / there for here, there in zip((median, fast), found["bare"], strict=True)]
        print(f"{kind:9}{1000 * median:11.1f} ms{shares[0]:9.3f}{1000 * fast:13.1f} ms{shares[1]:9.3f}"
              f"{len(all_of[kind]):7}")  # fmt: skip
    print(f"product / bare of each pair of starts: {', '.join(f'{ratio:.3f}' for ratio in each)}")


def words(arguments: argparse.Namespace, shards: Path, runs: Path, name: str) -> list[str]:
    """The settings of both, as the product's command line."""
    batch = arguments.batch
    return [
        *("--data.loader", "synthetic", "--data.size", str(arguments.size), "--data.shards", str(shards)),
        *("--model.name", arguments.model, "--train.precision", "amp", "--train.zero_stage", str(arguments.zero)),
        *("--train.global_batch", str(batch * arguments.ranks), "--train.micro_batch", str(batch)),
        *("--train.epochs", "1", "--train.eval_every", "0", "--train.save_every", "1000000", "--track.wandb", "off"),
        *("--run.dir", str(runs), "--run.name", name),
    ]


def phantoms(folder: Path, images: int) -> Path:
    """Shards with ``images`` training images, all of them needles: the loader is synthetic, only the index is read."""
    python = [sys.executable, "-m", "brain_dist.shard"]
    made = ["--patients", str(images // 4 + 8), "--slices", "4", "--size", "64", "--out", str(folder / "images")]
    subprocess.run([*python, "phantom", *made], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    fractions = ["--source", str(folder / "images"), "--out", str(folder / "shards"), "--fractions", "0.98,0.01,0.01"]
    subprocess.run([*python, "build", *fractions], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder / "shards"


def steps_of(kind: str, settings: list[str], arguments: argparse.Namespace, run: Path) -> list[float]:
    """Seconds of each step after the warm ones of one start, on the main rank."""
    if kind == "product":
        command = [sys.executable, "-m", "brain_dist.train", *settings]
    else:
        command = [sys.executable, "-m", "benchmarks.loop_overhead", "--settings", json.dumps(settings)]
        command += ["--steps", str(arguments.steps)]
    ranks = start(command, Part(arguments.ranks), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    printed = [rank.communicate() for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise SystemExit(f"the {kind} loop failed:\n{printed[0][1]}")
    if kind == "bare":
        return json.loads(printed[0][0].splitlines()[-1])
    times = [json.loads(line)["time"] for line in (run / "metrics.jsonl").read_text().splitlines()][: arguments.steps]
    return [after - before for before, after in zip(times[WARM - 1 :], times[WARM:], strict=False)]


def bare(settings: list[str], steps: int) -> None:
    """One rank of the bare loop; prints its steps' seconds."""
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
    print(json.dumps([after - before for before, after in zip(times[WARM - 1 :], times[WARM:], strict=False)]))


if __name__ == "__main__":
    main()
