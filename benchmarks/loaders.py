"""Loader speed beside the peers: ``python -m benchmarks.loaders [SHARDS]`` (after ``make bench-setup``).

Every loader reads the same images (without SHARDS: phantoms of 512²) in its own format, augments them within the same
limits and makes batches for one epoch, in its own process, with the same number of workers or threads. Rounds are
interleaved; each loader runs one epoch warm and, with --cold, one before that. Cold means that its files were written
back and dropped from the page cache (posix_fadvise DONTNEED), which is checked. The clock starts at the fourth batch:
start-up does not count. CPU time is that of the process and all its workers over the same batches.

Then steps of a training on real batches alternate with steps on synthetic ones; the ratio is the median over all pairs.

The goals, with a warm cache, by CPU time, which other programs change less than images/s: the best loader
that decodes in Python takes 2.5 times ours; ours takes at most 1/0.7 of the time of decoding alone for gray, and 1/0.9
for RGB, whose goal is for gray JPEGs; training on synthetic batches takes at least 0.97 of that on real ones. The exit
code is 1 if one is missed.
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

from benchmarks.support.common import PEERS, median_interval, phantom_shards, require_peers, run_child
from benchmarks.support.loader_contestants import CONTESTANTS, PEER_MODULES, LoaderSetup
from benchmarks.support.processes import cpu_seconds, wait_until_idle
from brain_dist.common.cores import cpu_cores
from brain_dist.errors import Fault, UserError, run
from brain_dist.store.dataset import open_dataset

WARMUP = 4  # batches before the clock starts
AHEAD = 8  # batches before the end that the clock stops: more than any loader prepares ahead
TRAINING = "training"
GOAL_PEERS, GOAL_TRAINING = 2.5, 0.97
GOAL_CEILING = {"gray": 0.7, "rgb": 0.9}
COLORS = ("gray", "rgb")
Results = dict[str, list[dict[str, float]]]  # state of the cache, or kind of batches → images/s, CPU seconds an image
Rounds = dict[str, list[dict[str, float]]]  # "name color cache" → results of each round; of training, of each pair


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loaders", description=__doc__.split("\n\n")[0])
    parser.add_argument("shards", type=Path, nargs="?", help="a folder of `shard build`; default: phantoms")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=cpu_cores(), help="default: one per core")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--model", default="convnext_atto", help="network for the comparison of training rates")
    parser.add_argument("--cold", action="store_true", help="also measure an epoch with a cold page cache")
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
        run_child([str(PEERS), "-m", "benchmarks.support.loader_contestants", str(arguments.shards.resolve()), scratch])
        return compare(arguments)


def run_one(arguments: argparse.Namespace) -> int:
    """In its own process: one epoch of one loader, or pairs of training steps; prints a line of JSON."""
    if arguments.one == TRAINING:
        from benchmarks.support.loader_training import training_pairs

        pairs = training_pairs(arguments.shards, arguments.model, arguments.size, arguments.workers)
        print(json.dumps(pairs))
        return 0
    import torch

    torch.set_num_threads(1)
    setup = LoaderSetup(
        arguments.shards, Path(arguments.work), arguments.color, arguments.workers, arguments.size, arguments.batch
    )
    contestant = CONTESTANTS[arguments.one]
    caches = ("cold", "warm") if contestant.files and arguments.cold else ("warm",)
    images = len(open_dataset(arguments.shards))
    print(json.dumps({cache: [measure_epoch(contestant.epoch(setup), images, setup.batch)] for cache in caches}))
    return 0


def measure_epoch(batches: Iterator[int], images: int, batch: int) -> dict[str, float]:
    """Images/s and CPU seconds per image in the middle of an epoch.

    At both marks the loader has prepared as much ahead as it can and waits: what was prepared before the first mark
    must not count as done in no time.
    """
    last = images // batch - AHEAD
    if last <= WARMUP:
        raise UserError(f"{images} images are too few for batches of {batch}: --batch {images // (WARMUP + AHEAD + 1)}")
    timed = 0
    for number, count in enumerate(batches, 1):
        timed += count if WARMUP < number <= last else 0
        if number == WARMUP:
            wait_until_idle()
            start, cpu_before = time.perf_counter(), cpu_seconds()
        elif number == last:
            end, cpu_after = wait_until_idle()
    return {"images": images, "rate": timed / (end - start), "cpu": (cpu_after - cpu_before) / timed}


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


def measure(arguments: argparse.Namespace, name: str, color: str) -> Results:
    """Measure one loader in a new process with a cold cache; return its results by cache state."""
    contestant = CONTESTANTS.get(name)  # None: training
    if contestant and contestant.files and arguments.cold:
        shards = contestant.files == "shards"
        drop_from_page_cache(arguments.shards if shards else Path(arguments.work) / contestant.files)
    python = str(PEERS) if contestant and contestant.peer else sys.executable
    command = [python, "-W", "ignore", "-m", "benchmarks.loaders", str(arguments.shards.resolve()), "--one", name]
    command += ["--color", color, "--work", str(arguments.work), "--model", arguments.model]
    command += ["--cold"] if arguments.cold else []
    for key in ("workers", "size", "batch"):
        command += [f"--{key}", str(getattr(arguments, key))]
    results: Results = json.loads(run_child(command).strip().splitlines()[-1])
    return results


def compare(arguments: argparse.Namespace) -> int:
    """Run all rounds; print the table and the goals; return the exit code."""
    if not len(open_dataset(arguments.shards).rows("train")):
        raise UserError(f"{arguments.shards} has no training images; give shards that a training could use")
    rounds: Rounds = {}
    contestants = [(name, color) for color in COLORS for name in CONTESTANTS]
    contestants.append((TRAINING, "gray"))
    for number in range(arguments.rounds):
        for name, color in contestants:
            for cache, results in measure(arguments, name, color).items():
                rounds.setdefault(f"{name} {color} {cache}", []).extend(results)
                progress = f"round {number + 1} of {arguments.rounds}: {name} {color} {cache}"
                rate = statistics.median(result["rate"] for result in results)
                print(f"{progress} {rate:.0f} images/s", file=sys.stderr, flush=True)
    images = int(rounds["ours gray warm"][0]["images"])
    print(
        f"{images:,} images, {arguments.size}² out, batches of {arguments.batch}, {arguments.workers} workers or"
        f" threads on {cpu_cores()} cores; medians of {arguments.rounds} interleaved rounds\n"
    )
    if arguments.out:
        arguments.out.write_text(json.dumps(rounds, indent=1) + "\n")
    print_table(rounds)
    return print_goals(rounds, arguments.model)


def median(rounds: Rounds, key: str, field: str) -> float:
    """Median over the rounds of a contestant, given as ``name color cache``."""
    return statistics.median(result[field] for result in rounds[key])


def paired(rounds: Rounds, key: str, other: str, field: str) -> float:
    """Median over the rounds of the ratio of two contestants in the same round."""
    return statistics.median(ratios(rounds, key, other, field))


def ratios(rounds: Rounds, key: str, other: str, field: str) -> list[float]:
    """Ratio of two contestants in each round."""
    return [a[field] / b[field] for a, b in zip(rounds[key], rounds[other], strict=True)]


def print_table(rounds: Rounds) -> None:
    """Print one row per colour mode and loader; ratios are medians of those of each round."""
    head = ("", "colour", "images/s cold", "images/s warm", "CPU ms an image", "its images/s / ours", "its CPU / ours")
    print(f"| {' | '.join(head)} |\n|---|---|{'--:|' * 5}")
    for color in COLORS:
        ours = f"ours {color} warm"
        for name, contestant in CONTESTANTS.items():
            warm, cold = f"{name} {color} warm", f"{name} {color} cold"
            cells = (
                contestant.title,
                color,
                f"{median(rounds, cold, 'rate'):,.0f}" if cold in rounds else "",
                f"{median(rounds, warm, 'rate'):,.0f}",
                f"{1e3 * median(rounds, warm, 'cpu'):.2f}",
                f"{paired(rounds, warm, ours, 'rate'):.2f}",
                f"{paired(rounds, warm, ours, 'cpu'):.2f}",
            )
            print(f"| {' | '.join(cells)} |")


def print_goals(rounds: Rounds, model: str) -> int:
    """Print whether each goal is met, by CPU time and beside it by images/s; return 1 if one is missed."""
    goals = []
    for color in COLORS:
        ours = f"ours {color} warm"
        peers = [f"{name} {color} warm" for name, contestant in CONTESTANTS.items() if contestant.python]
        times = {peer: paired(rounds, peer, ours, "cpu") for peer in peers}
        best = min(times, key=times.__getitem__)
        title = f"{color}: {CONTESTANTS[best.split()[0]].title}, the best that decodes in Python, / ours"
        goals.append((title, best, ours, GOAL_PEERS))
        goals.append((f"{color}: decoding only / ours", f"decode {color} warm", ours, GOAL_CEILING[color]))
    title = f"training {model} on synthetic / on real batches"
    goals.append((title, f"{TRAINING} gray synthetic", f"{TRAINING} gray real", GOAL_TRAINING))
    print()
    missed = 0
    for title, other, ours, goal in goals:
        value, rate = paired(rounds, other, ours, "cpu"), paired(rounds, ours, other, "rate")
        verdict = "met" if value >= goal else "missed"
        print(f"{title}, CPU time = {value:.3f} (goal ≥ {goal}): {verdict}; images/s of ours / its = {rate:.2f}")
        missed |= value < goal
    low, high = median_interval(ratios(rounds, f"{TRAINING} gray synthetic", f"{TRAINING} gray real", "cpu"))
    print(f"95 % interval of the last ratio over its pairs of steps: {low:.3f} to {high:.3f}")
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(run(main))
