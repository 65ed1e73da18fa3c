"""Build speed beside other packers: ``python -m benchmarks.shard_build SOURCE [--recipe YAML]``.

Every contestant packs the same files in its own process on the same cores. Its time runs from listing the folder to the
last byte on disk (including an fsync of everything it wrote, if it does none). Imports are not counted (the column
"whole" has them), except those of its workers. Rounds are interleaved, and the source is in the page cache. Only ours
and the floor decode and compute checksums; the peers copy bytes. litdata and mosaicml-streaming have their own
environment: ``make bench-setup``.

``--memory N1,N2`` instead builds from N1 and from N2 synthetic images and prints the peak memory.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.support.common import PEERS, ROOT, integers, require_peers
from benchmarks.support.processes import cpu_seconds, descendants_cpu_seconds, machine_cpu_seconds, wait_and_watch
from benchmarks.support.shard_contestants import CONTESTANTS, STAGES, list_images
from brain_dist.common.cores import cpu_cores
from brain_dist.errors import Fault, UserError, run

Result = dict[str, Any]  # measurements of one round
Rounds = dict[str, list[Result]]
GOAL = 3.5  # ours / floor with decoding, CPU time
MB = 1e6
NOTES = """\
Times are best / median of the rounds. In brackets: with the start of the process and imports.
fsync s: the part for data that the contestant had not synced itself. CPU s: all its processes, best round.
peak MB: main process + its largest other process, all together (shared and mapped pages count in each).
others: cores that other processes of this machine used meanwhile, mean / maximum."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line; return the exit code."""
    arguments = argument_parser().parse_args(argv)
    if arguments.one:
        return run_one(arguments)
    if arguments.memory:
        return compare_memory(arguments)
    if arguments.source is None:
        raise UserError("give a folder of images, or --memory N1,N2")
    return compare(arguments)


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shard_build", description=__doc__.split("\n\n")[0])
    parser.add_argument("source", type=Path, nargs="?", help="a folder of images")
    parser.add_argument("--recipe", type=Path, metavar="YAML", help="recipe of the folder, as for `shard build`")
    parser.add_argument(
        "--workers", type=int, default=cpu_cores(), metavar="N", help="processes (default: one per core)"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--without-peers", action="store_true", help="leave out litdata and mosaicml-streaming")
    parser.add_argument("--memory", metavar="N1,N2", help="measure memory, on these numbers of synthetic images")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the numbers of every round")
    parser.add_argument("--one", choices=tuple(CONTESTANTS), help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    return parser


def run_one(arguments: argparse.Namespace) -> int:
    """In its own process: one contestant packs ``arguments.source`` into the folder ``arguments.to``."""
    contestant, out = CONTESTANTS[arguments.one], arguments.to
    for name in contestant.imports:
        importlib.import_module(name)
    start, cpu_before = time.perf_counter(), cpu_seconds()
    images = contestant.pack(arguments.source, out, arguments.recipe, arguments.workers)
    packed = time.perf_counter()
    size = 0
    for path in [*out.rglob("*"), out]:
        size += path.stat().st_size if path.is_file() else 0
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    end = time.perf_counter()
    result = {
        "images": images,
        "seconds": end - start,
        "fsync": end - packed,
        "cpu": cpu_seconds() - cpu_before,
        "bytes": size,
        "unwaited": descendants_cpu_seconds(),
        "stages": STAGES,
    }
    out.with_suffix(".json").write_text(json.dumps(result))
    return 0


def measure(name: str, source: Path, recipe: Path | None, workers: int) -> Result:
    """Run one contestant in a new process; add its memory and the load of other processes to its results."""
    python = str(PEERS) if CONTESTANTS[name].peer else sys.executable
    with tempfile.TemporaryDirectory(prefix="shard_build-") as scratch:
        out = Path(scratch, "out")
        command = [python, "-m", "benchmarks.shard_build", str(source.resolve()), "--one", name, "--to", str(out)]
        command += ["--workers", str(workers), *(["--recipe", str(recipe.resolve())] if recipe else [])]
        with Path(scratch, "log").open("w+") as log:
            machine_before, start = machine_cpu_seconds(), time.perf_counter()
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            usage = wait_and_watch(process)
            whole, machine = time.perf_counter() - start, machine_cpu_seconds() - machine_before
            if process.returncode:
                log.seek(0)
                lines = log.read().strip().splitlines() or [f"exit code {process.returncode}"]
                raise Fault(f"{name} failed: {lines[-1]}")
        result: Result = json.loads(out.with_suffix(".json").read_text())
    main_peak = usage.peak.pop(process.pid, 0)
    return result | {
        "whole": whole,
        "others": max(0.0, (machine - usage.cpu_seconds - result["unwaited"]) / whole),
        "peak": main_peak,
        "peak_unmapped": usage.peak_anonymous[process.pid],
        "peak_worker": max(usage.peak.values(), default=0),
        "peak_all": main_peak + sum(usage.peak.values()),
    }


def compare(arguments: argparse.Namespace) -> int:
    """Run all rounds of all contestants; print the table and the ratios."""
    if not arguments.source.is_dir():
        raise UserError(f"{arguments.source} is not a folder")
    files = list_images(arguments.source)
    if not files:
        raise UserError(f"{arguments.source} has no .jpg or .png files")
    names = [name for name, one in CONTESTANTS.items() if not (arguments.without_peers and one.peer)]
    modules = sorted({module for name in names if CONTESTANTS[name].peer for module in CONTESTANTS[name].imports})
    if modules:
        require_peers(modules)
    size = sum(len(Path(path).read_bytes()) for path, _ in files)  # also fills the page cache
    rounds: Rounds = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name in names:
            rounds[name].append(measure(name, arguments.source, arguments.recipe, arguments.workers))
    print(
        f"{arguments.source.resolve().name}: {len(files):,} images, {size / MB:.1f} MB, {arguments.workers} workers on "
        f"{cpu_cores()} cores, {arguments.rounds} rounds; Python {platform.python_version()}\n"
    )
    print_table(rounds, arguments.workers)
    print(f"\n{NOTES}\n")
    print_ratios(rounds)
    save(arguments, rounds)
    return 0


def print_table(rounds: Rounds, workers: int) -> None:
    """Print one row per contestant."""
    head = ("", "processes", "decodes", "images/s", "seconds", "[whole]", "fsync s", "x floor", "CPU s", "MB written",
            "peak MB", "others")  # fmt: skip
    rows = [head, *(_cells(name, rounds, workers) for name in rounds)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())


def _cells(name: str, rounds: Rounds, workers: int) -> tuple[str, ...]:
    contestant, results = CONTESTANTS[name], rounds[name]
    best = min(results, key=lambda result: result["seconds"])
    others = [result["others"] for result in results]
    peaks = " + ".join(f"{best[key] / MB:.0f}" for key in ("peak", "peak_worker"))
    return (
        contestant.title, str(contestant.processes or workers), "yes" if contestant.decodes else "no",
        _pair([best["images"] / seconds for seconds in best_and_median(results)], 0),
        _pair(best_and_median(results), 2), f"[{_pair(best_and_median(results, 'whole'), 1)}]",
        f"{best['fsync']:.2f}", _pair(ratios(rounds, name, "floor"), 2), f"{best['cpu']:.1f}",
        f"{best['bytes'] / MB:.1f}", f"{peaks}, {best['peak_all'] / MB:.0f}",
        _pair((statistics.mean(others), max(others)), 2),
    )  # fmt: skip


def best_and_median(results: Sequence[Result], key: str = "seconds") -> tuple[float, float]:
    """Smallest value and median over the rounds."""
    values = [result[key] for result in results]
    return min(values), statistics.median(values)


def ratios(rounds: Rounds, name: str, other: str) -> tuple[float, float]:
    """Time of one contestant relative to another: of the best rounds, and of the medians."""
    best, median = (a / b for a, b in zip(best_and_median(rounds[name]), best_and_median(rounds[other]), strict=True))
    return best, median


def _pair(values: Sequence[float], digits: int) -> str:
    return " / ".join(f"{value:,.{digits}f}" for value in values)


def print_ratios(rounds: Rounds) -> None:
    """Print the time of ours relative to the floors and to each peer, and the times of its stages."""
    cpu = {name: min(result["cpu"] for result in results) for name, results in rounds.items()}
    least = cpu["ours"] / cpu["floor"]
    print(f"CPU time of ours / decoding floor = {least:.2f} (goal ≤ {GOAL}): {'met' if least <= GOAL else 'missed'}")
    print(f"CPU time of ours / decoding floor with Pillow = {cpu['ours'] / cpu['pillow-floor']:.2f}")
    best, median = ratios(rounds, "ours", "floor")
    print(f"ours / decoding floor = {best:.2f}; {median:.2f} of the medians")
    best_round = min(rounds["ours"], key=lambda result: result["cpu"])
    stages = ("first image", "decoding", "comparing", "writing shards")
    ends = [0.0, *(best_round["stages"][stage] for stage in stages), best_round["cpu"]]
    seconds = [end - start for start, end in pairwise(ends)]
    titles = ("until the first image", "decoding", "comparing", "writing shards", "index, manifest, opening")
    parts = ", ".join(f"{title} {value:.2f} s" for title, value in zip(titles, seconds, strict=True))
    print(f"CPU time of ours: {parts}; {1e3 * seconds[1] / best_round['images']:.2f} ms an image to decode and measure")
    for name in ("webdataset", "litdata", "mds"):
        if name in rounds:
            best, median = ratios(rounds, "ours", name)
            print(f"ours / {CONTESTANTS[name].title} = {best:.2f}; {median:.2f} of the medians")


def compare_memory(arguments: argparse.Namespace) -> int:
    """Print the peak memory of builds of growing numbers of images."""
    try:
        counts = integers(arguments.memory)
    except ValueError:
        counts = []
    if len(counts) < 2 or min(counts) < 20:
        raise UserError(f"--memory {arguments.memory}: must be two or more numbers of images ≥ 20, such as 1000,10000")
    results: dict[str, Result] = {}
    print(f"{'images':>8}{'seconds':>10}{'peak MB':>10}{'without mapped files':>22}{'largest worker MB':>20}")
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="shard_build-") as scratch:
            draw_collection(Path(scratch), count)
            result = results[str(count)] = measure("ours", Path(scratch), None, arguments.workers)
        print(f"{count:8,}{result['seconds']:10.1f}{result['peak'] / MB:10.0f}{result['peak_unmapped'] / MB:22.0f}"
              f"{result['peak_worker'] / MB:20.0f}", flush=True)  # fmt: skip
    few, many = results[str(counts[0])], results[str(counts[-1])]
    factor = {name: many[name] / max(1, few[name]) for name in ("peak", "peak_unmapped", "peak_worker")}
    growth = (many["peak_unmapped"] - few["peak_unmapped"]) / (counts[-1] - counts[0])
    print(
        f"{counts[-1] / counts[0]:.0f} times the images: {factor['peak']:.2f} times the memory; without mapped files"
        f" {factor['peak_unmapped']:.2f} times, {growth / 1e3:.1f} kB an image; workers"
        f" {factor['peak_worker']:.2f} times"
    )
    save(arguments, results)
    return 0


def draw_collection(folder: Path, count: int) -> None:
    """Write ``count`` different JPEGs of 64 x 64 pixels in four classes: ellipses of smooth random texture on black."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    for number in range(count):
        rng = np.random.default_rng(number)
        cells = Image.fromarray(rng.integers(40, 220, (14, 14), dtype=np.uint8))
        inside = np.hypot(*(np.stack([x, y]) / rng.uniform(0.6, 0.85, (2, 1, 1)))) < 1
        pixels = np.asarray(cells.resize((64, 64), Image.Resampling.BICUBIC)) * inside
        path = folder / ("glioma", "meningioma", "notumor", "pituitary")[number % 4] / f"{number:07d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)


def save(arguments: argparse.Namespace, rounds: Mapping[str, Any]) -> None:
    """Write all numbers to ``--out``, if given."""
    if arguments.out is None:
        return
    source = arguments.source and arguments.source.resolve().name
    document = {"source": source, "workers": arguments.workers, "memory": arguments.memory,
                "python": platform.python_version(), "cores": cpu_cores(), "rounds": rounds}  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(run(main))
