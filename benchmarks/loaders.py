"""Loader speed beside the peers: ``python -m benchmarks.loaders [SHARDS]`` (after ``make bench-setup``).

Every loader reads the same images (without SHARDS: phantoms of 512²) in its own format, augments them within the same
limits and makes batches, one epoch, in a process of its own, on the same cores with as many workers or threads.
Rounds are interleaved; each loader makes an epoch cold, then one warm. Cold: its files are written back and dropped
from the page cache (posix_fadvise DONTNEED), which is checked. The clock runs from the fourth batch on, so that
starting up does not count. CPU time is that of the process and all its workers over the same stretch.

Then training on real batches beside training on synthetic ones. The exit code is 1 where ours is below the first goal:
2.5 times the best loader that decodes by Python, colour by colour, warm.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.loader_contestants import CONTESTANTS, Place
from brain_dist.errors import Fault, UserError, run

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-bench" / "bin" / "python"
SKIPPED = 4  # batches before the clock starts
GOAL_PEERS, GOAL_CEILING, GOAL_TRAINING = 2.5, 0.9, 0.97
COLORS = ("gray", "rgb")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loaders", description=__doc__.split("\n\n")[0])
    parser.add_argument("shards", type=Path, nargs="?", help="a folder that `shard build` made; default: phantoms")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: one a core")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--model", default="convnext_atto", help="network of the comparison of training rates")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="every number of every round")
    for name in ("one", "color", "work"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        return one(args)
    if not PEERS.exists():
        raise UserError("the peers are not installed; run `make bench-setup`")
    with tempfile.TemporaryDirectory(prefix="loaders-") as scratch:
        args.work = scratch
        if args.shards is None:
            args.shards = _phantoms(Path(scratch))
        _child([str(PEERS), "-m", "benchmarks.loader_contestants", str(args.shards.resolve()), scratch])
        return compare(args)


def _phantoms(scratch: Path) -> Path:
    made = ["--patients", "500", "--slices", "2", "--size", "512", "--seed", "0"]
    for words in (
        ["phantom", "--out", str(scratch / "phantoms"), *made],
        ["build", "--source", str(scratch / "phantoms"), "--out", str(scratch / "shards"), "--shard-size", "8MB"],
    ):
        _child([sys.executable, "-m", "brain_dist.shard", *words])
    return scratch / "shards"


def _child(words: list[str]) -> str:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Fault(f"{' '.join(words[:3])} failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return done.stdout


def one(args: argparse.Namespace) -> int:
    """In a process of its own: one epoch of one loader, or ten steps of training; prints a line of JSON."""
    import torch

    torch.set_num_threads(1)
    place = Place(args.shards, Path(args.work), args.color, args.workers, args.size, args.batch)
    if args.one.startswith("train-"):
        print(json.dumps({"warm": training_rate(args, args.one.removeprefix("train-"))}))
        return 0
    contestant = CONTESTANTS[args.one]
    passes = {cache: epoch(contestant.epoch(place)) for cache in (("cold", "warm") if contestant.files else ("warm",))}
    print(json.dumps(passes))
    return 0


def epoch(batches: Iterator[int]) -> dict[str, float]:
    """Images, images/s and CPU seconds an image of one epoch, after the first batches."""
    images, marks = 0, []
    for count in batches:
        images += count
        marks.append((images, time.perf_counter(), cpu_seconds(os.getpid())))
    (a, began, used), (b, ended, used_then) = marks[SKIPPED - 1], marks[-1]
    return {"images": images, "rate": (b - a) / (ended - began), "cpu": (used_then - used) / (b - a)}


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its living descendants."""
    total = 0
    try:
        total = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                total += cpu_seconds(int(child)) * os.sysconf("SC_CLK_TCK")  # type: ignore[assignment]
    except OSError:
        pass  # a tool that ended meanwhile
    return total / os.sysconf("SC_CLK_TCK")


def training_rate(args: argparse.Namespace, loader: str) -> dict[str, float]:
    """Images/s of ten optimiser steps after two."""
    from brain_dist.config import Config, DataConfig, ModelConfig, TrainConfig
    from brain_dist.networks.create import create_network
    from brain_dist.ranks.device import choose_device
    from brain_dist.ranks.group import process_group
    from brain_dist.ranks.world import discover
    from brain_dist.store.dataset import open_dataset
    from brain_dist.stream.batches import training_batches
    from brain_dist.training.engine import Engine

    dataset, world = open_dataset(args.shards), discover({})
    config = Config(
        data=DataConfig(size=args.size, loader=loader, threads=1),  # type: ignore[arg-type]
        model=ModelConfig(name=args.model),
        train=TrainConfig(global_batch=32, micro_batch=32, precision="amp", epochs=10),
    )
    device = choose_device(world, "auto")
    with process_group(world, device):
        import torch

        torch.set_num_threads(args.workers)
        engine = Engine(config, create_network(config.model, len(dataset.classes), seed=0), world, device)
        batches = training_batches(config, dataset, world, device, first_step=0)
        for step in range(12):
            if step == 2:
                began = time.perf_counter()
            float(engine.step([next(batches)], lr=1e-4))  # the loss is waited for, as training does
        return {"rate": 10 * 32 / (time.perf_counter() - began)}


def drop(folder: Path) -> None:
    """Write back and drop the files of a folder from the page cache; :class:`Fault` where a tenth of them stays."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for _ in range(20):  # pages that the kernel is still filing away stay, the first times
        kept = sum(_dropped(path) for path in files)
        if not kept:
            return
        time.sleep(0.1)
    if kept > len(files) // 10:
        raise Fault(f"{kept} of {len(files)} files of {folder} stay in the page cache; another file system may help")


def _dropped(path: Path) -> int:
    """Drop a file; 1 where its first byte is in memory all the same."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:  # not in memory: what was wanted
        return 0
    finally:
        os.close(descriptor)


def measure(args: argparse.Namespace, name: str, color: str) -> dict[str, dict[str, float]]:
    """One loader in a fresh process, its files dropped from memory: what it measured, by the state of the cache."""
    contestant = CONTESTANTS.get(name)
    if contestant and contestant.files:
        drop(args.shards if contestant.files == "shards" else Path(args.work) / contestant.files)
    python = str(PEERS) if contestant and contestant.peer else sys.executable
    words = [python, "-W", "ignore", "-m", "benchmarks.loaders", str(args.shards.resolve()), "--one", name]
    words += ["--color", color, "--work", str(args.work), "--model", args.model]
    for key in ("workers", "size", "batch"):
        words += [f"--{key}", str(getattr(args, key))]
    made: dict[str, dict[str, float]] = json.loads(_child(words).strip().splitlines()[-1])
    return made


def compare(args: argparse.Namespace) -> int:
    """All rounds, the tables, the verdict."""
    rounds: dict[str, list[dict[str, float]]] = {}
    plan = [(name, color) for color in COLORS for name in CONTESTANTS]
    plan += [("train-dali", "gray"), ("train-synthetic", "gray")]
    for number in range(args.rounds):
        for name, color in plan:
            for cache, measured in measure(args, name, color).items():
                rounds.setdefault(f"{name} {color} {cache}", []).append(measured)
                said = f"round {number + 1} of {args.rounds}: {name} {color} {cache} {measured['rate']:.0f} images/s"
                print(said, file=sys.stderr, flush=True)
    images = int(rounds["ours gray warm"][0]["images"])
    print(
        f"{images:,} images, {args.size}² out, batches of {args.batch}, {args.workers} workers or threads on"
        f" {len(os.sched_getaffinity(0))} cores; medians of {args.rounds} interleaved rounds\n"
    )
    if args.out:
        args.out.write_text(json.dumps(rounds, indent=1) + "\n")
    return verdict(rounds, args.model)


def verdict(rounds: dict[str, list[dict[str, float]]], model: str) -> int:
    """The table, then the goals; 1 where the first is missed."""

    def median(key: str, what: str = "rate") -> float:
        return statistics.median(one[what] for one in rounds[key]) if key in rounds else float("nan")

    head = ("", "colour", "images/s cold", "images/s warm", "CPU ms an image", "of the ceiling")
    print(f"| {' | '.join((*head, 'ours is faster by', 'and takes of the CPU'))} |\n|{'---|' * (len(head) + 2)}")
    goals = []
    for color in COLORS:
        mine, ceiling = f"ours {color} warm", f"decode {color} warm"
        for name, contestant in CONTESTANTS.items():
            warm, cold = f"{name} {color} warm", f"{name} {color} cold"
            cells = [contestant.title, color, f"{median(cold):,.0f}" if cold in rounds else "", f"{median(warm):,.0f}"]
            cells += [f"{1e3 * median(warm, 'cpu'):.2f}", f"{median(warm) / median(ceiling):.2f}"]
            cells += [f"{median(mine) / median(warm):.2f}", f"{median(mine, 'cpu') / median(warm, 'cpu'):.2f}"]
            print("| " + " | ".join(cells) + " |")
        best = max((n for n, c in CONTESTANTS.items() if c.python), key=lambda n: median(f"{n} {color} warm"))
        said = f"{color}: ours / {CONTESTANTS[best].title}, the best that decodes by Python"
        goals.append((said, median(mine) / median(f"{best} {color} warm"), GOAL_PEERS))
        goals.append((f"{color}: ours / ceiling", median(mine) / median(ceiling), GOAL_CEILING))
    rates = [median(f"train-{loader} gray warm") for loader in ("dali", "synthetic")]
    goals.append((f"training {model}, real / synthetic ({rates[1]:.1f} images/s)", rates[0] / rates[1], GOAL_TRAINING))
    print()
    for said, value, goal in goals:
        print(f"{said} = {value:.3f} (goal ≥ {goal}): {'met' if value >= goal else 'missed'}")
    return int(any(value < goal for _, value, goal in goals if goal == GOAL_PEERS))


if __name__ == "__main__":
    raise SystemExit(run(main))
