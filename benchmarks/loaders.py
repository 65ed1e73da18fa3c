"""Loader speed beside the peers: ``python -m benchmarks.loaders [SHARDS]`` (after ``make bench-setup``).

Every loader reads the same images (without SHARDS: phantoms of 512²) in its own format, augments them within the same
limits and makes batches for one epoch, in its own process, with the same number of workers or threads. Rounds are
interleaved; each loader runs one epoch cold and one warm. Cold means that its files were written back and dropped from
the page cache (posix_fadvise DONTNEED), which is checked. The clock starts at the fourth batch, so that start-up does
not count. CPU time is that of the process and all its workers over the same batches.

Then training on real batches is compared with training on synthetic ones. The exit code is 1 if ours misses the first
goal: 2.5 times the best loader that decodes in Python, in each colour mode, warm.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.common import PEERS, phantom_shards, require_peers, run_child
from benchmarks.loader_contestants import CONTESTANTS, PEER_MODULES, LoaderSetup
from benchmarks.processes import cpu_seconds
from brain_dist.common.cores import cpu_cores
from brain_dist.errors import Fault, run

WARMUP = 4  # batches before the clock starts
GOAL_PEERS, GOAL_CEILING, GOAL_TRAINING = 2.5, 0.9, 0.97
COLORS = ("gray", "rgb")
Rounds = dict[str, list[dict[str, float]]]  # "name color cache" → results of each round


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loaders", description=__doc__.split("\n\n")[0])
    parser.add_argument("shards", type=Path, nargs="?", help="a folder of `shard build`; default: phantoms")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=cpu_cores(), help="default: one per core")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--model", default="convnext_atto", help="network for the comparison of training rates")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the numbers of every round")
    for name in ("one", "color", "work"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        return run_one(arguments)
    require_peers(PEER_MODULES)
    with tempfile.TemporaryDirectory(prefix="loaders-") as scratch:
        arguments.work = scratch
        if arguments.shards is None:
            options = ("--shard-size", "8MB")
            arguments.shards = phantom_shards(Path(scratch), *options, patients=500, slices=2, size=512)
        run_child([str(PEERS), "-m", "benchmarks.loader_contestants", str(arguments.shards.resolve()), scratch])
        return compare(arguments)


def run_one(arguments: argparse.Namespace) -> int:
    """In its own process: one epoch of one loader, or ten training steps; prints a line of JSON."""
    import torch

    torch.set_num_threads(1)
    if arguments.one.startswith("train-"):
        print(json.dumps({"warm": training_rate(arguments, arguments.one.removeprefix("train-"))}))
        return 0
    setup = LoaderSetup(
        arguments.shards, Path(arguments.work), arguments.color, arguments.workers, arguments.size, arguments.batch
    )
    contestant = CONTESTANTS[arguments.one]
    caches = ("cold", "warm") if contestant.files else ("warm",)
    print(json.dumps({cache: measure_epoch(contestant.epoch(setup)) for cache in caches}))
    return 0


def measure_epoch(batches: Iterator[int]) -> dict[str, float]:
    """Images, images/s and CPU seconds per image of one epoch, after the warm-up batches."""
    images, marks = 0, []
    for count in batches:
        images += count
        marks.append((images, time.perf_counter(), cpu_seconds()))
    (first, start, cpu_before), (last, end, cpu_after) = marks[WARMUP - 1], marks[-1]
    timed = last - first
    return {"images": images, "rate": timed / (end - start), "cpu": (cpu_after - cpu_before) / timed}


def training_rate(arguments: argparse.Namespace, loader: str) -> dict[str, float]:
    """Images/s of ten optimiser steps, after two of warm-up."""
    from brain_dist.config import Config, DataConfig, ModelConfig, TrainConfig
    from brain_dist.networks.create import create_network
    from brain_dist.ranks.device import choose_device
    from brain_dist.ranks.group import process_group
    from brain_dist.ranks.world import discover
    from brain_dist.store.dataset import open_dataset
    from brain_dist.stream.batches import training_batches
    from brain_dist.training.engine import Engine

    dataset, world = open_dataset(arguments.shards), discover({})
    config = Config(
        data=DataConfig(size=arguments.size, loader=loader, threads=1),  # type: ignore[arg-type]
        model=ModelConfig(name=arguments.model),
        train=TrainConfig(global_batch=32, micro_batch=32, precision="amp", epochs=10),
    )
    device = choose_device(world, "auto")
    with process_group(world, device):
        import torch

        torch.set_num_threads(arguments.workers)
        engine = Engine(config, create_network(config.model, len(dataset.classes), seed=0), world, device)
        batches = training_batches(config, dataset, world, device, first_step=0)
        for step in range(12):
            if step == 2:
                start = time.perf_counter()
            float(engine.step([next(batches)], lr=1e-4))  # waits for the loss, as training does
        return {"rate": 10 * 32 / (time.perf_counter() - start)}


def drop_from_page_cache(folder: Path) -> None:
    """Write back the files of a folder and drop them from the page cache.

    Raises:
        Fault: more than a tenth of the files stay in the cache.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]
    for _ in range(20):  # pages that the kernel is still writing stay at first
        kept = sum(_drop(path) for path in files)
        if not kept:
            return
        time.sleep(0.1)
    if kept > len(files) // 10:
        raise Fault(f"{kept} of {len(files)} files of {folder} stay in the page cache; try another file system")


def _drop(path: Path) -> int:
    """Drop a file; return 1 if its first byte is still in the cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:  # not in the cache
        return 0
    finally:
        os.close(descriptor)


def measure(arguments: argparse.Namespace, name: str, color: str) -> dict[str, dict[str, float]]:
    """Measure one loader in a new process with a cold cache; return its results by cache state."""
    contestant = CONTESTANTS.get(name)  # None: training
    if contestant and contestant.files:
        shards = contestant.files == "shards"
        drop_from_page_cache(arguments.shards if shards else Path(arguments.work) / contestant.files)
    python = str(PEERS) if contestant and contestant.peer else sys.executable
    command = [python, "-W", "ignore", "-m", "benchmarks.loaders", str(arguments.shards.resolve()), "--one", name]
    command += ["--color", color, "--work", str(arguments.work), "--model", arguments.model]
    for key in ("workers", "size", "batch"):
        command += [f"--{key}", str(getattr(arguments, key))]
    results: dict[str, dict[str, float]] = json.loads(run_child(command).strip().splitlines()[-1])
    return results


def compare(arguments: argparse.Namespace) -> int:
    """Run all rounds; print the table and the goals; return the exit code."""
    rounds: Rounds = {}
    contestants = [(name, color) for color in COLORS for name in CONTESTANTS]
    contestants += [("train-dali", "gray"), ("train-synthetic", "gray")]
    for number in range(arguments.rounds):
        for name, color in contestants:
            for cache, result in measure(arguments, name, color).items():
                rounds.setdefault(f"{name} {color} {cache}", []).append(result)
                progress = f"round {number + 1} of {arguments.rounds}: {name} {color} {cache}"
                print(f"{progress} {result['rate']:.0f} images/s", file=sys.stderr, flush=True)
    images = int(rounds["ours gray warm"][0]["images"])
    print(
        f"{images:,} images, {arguments.size}² out, batches of {arguments.batch}, {arguments.workers} workers or"
        f" threads on {cpu_cores()} cores; medians of {arguments.rounds} interleaved rounds\n"
    )
    if arguments.out:
        arguments.out.write_text(json.dumps(rounds, indent=1) + "\n")
    print_table(rounds)
    return print_goals(rounds, arguments.model)


def median(rounds: Rounds, key: str, field: str = "rate") -> float:
    """Median over the rounds of a contestant, given as ``name color cache``."""
    return statistics.median(result[field] for result in rounds[key]) if key in rounds else float("nan")


def print_table(rounds: Rounds) -> None:
    """Print one row per colour mode and loader."""
    head = ("", "colour", "images/s cold", "images/s warm", "CPU ms an image", "of the ceiling", "ours is faster by",
            "and takes of the CPU")  # fmt: skip
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for color in COLORS:
        ours, ceiling = f"ours {color} warm", f"decode {color} warm"
        for name, contestant in CONTESTANTS.items():
            warm, cold = f"{name} {color} warm", f"{name} {color} cold"
            cells = (
                contestant.title,
                color,
                f"{median(rounds, cold):,.0f}" if cold in rounds else "",
                f"{median(rounds, warm):,.0f}",
                f"{1e3 * median(rounds, warm, 'cpu'):.2f}",
                f"{median(rounds, warm) / median(rounds, ceiling):.2f}",
                f"{median(rounds, ours) / median(rounds, warm):.2f}",
                f"{median(rounds, ours, 'cpu') / median(rounds, warm, 'cpu'):.2f}",
            )
            print(f"| {' | '.join(cells)} |")


def print_goals(rounds: Rounds, model: str) -> int:
    """Print whether each goal is met; return 1 if the first one is missed."""
    goals = []
    for color in COLORS:
        ours = median(rounds, f"ours {color} warm")
        rates = {name: median(rounds, f"{name} {color} warm") for name, c in CONTESTANTS.items() if c.python}
        best = max(rates, key=lambda name: rates[name])
        title = f"{color}: ours / {CONTESTANTS[best].title}, the best that decodes in Python"
        goals.append((title, ours / rates[best], GOAL_PEERS))
        goals.append((f"{color}: ours / ceiling", ours / median(rounds, f"decode {color} warm"), GOAL_CEILING))
    real, synthetic = (median(rounds, f"train-{loader} gray warm") for loader in ("dali", "synthetic"))
    goals.append((f"training {model}, real / synthetic ({synthetic:.1f} images/s)", real / synthetic, GOAL_TRAINING))
    print()
    for title, value, goal in goals:
        print(f"{title} = {value:.3f} (goal ≥ {goal}): {'met' if value >= goal else 'missed'}")
    return int(any(value < goal for _, value, goal in goals if goal == GOAL_PEERS))


if __name__ == "__main__":
    raise SystemExit(run(main))
