"""Build speed beside the plain ways: ``python -m benchmarks.shard_build SOURCE [--recipe YAML]``.

Every contestant packs the same files, in a process of its own, on the same cores, and counts from its first look at the
folder to the last byte on the disk (an fsync of all it wrote, for those that do none themselves). Loading its packages
is not counted (the column "whole process" has it), but in its workers it is. Rounds are interleaved, the source is in
the page cache. Only ours and the floor decode and checksum: the peers copy bytes. litdata and mosaicml-streaming are in
an environment of their own: ``make bench-setup``.

``--memory N1,N2`` builds from N1 and from N2 made-up images instead and prints the peaks of memory.
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
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.processes import busy, cpu, running, watch
from benchmarks.shard_contestants import CONTESTANTS, STAGES, listed
from brain_dist.errors import Fault, UserError, run

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-bench" / "bin" / "python"
GOAL = 1.25  # ours / floor with decoding
MB = 1e6
NOTES = """\
each time: best / median of the rounds. In brackets: with the start of the process and the loading of packages.
fsync s: of it, for what the contestant had not brought to the disk itself. CPU s: all its processes, of the best round.
peak MB: of its main process, of its largest other one, and of all together (pages they share count in each; so do pages
of mapped files). others: cores that other processes of this machine used meanwhile, on average and at most."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parser().parse_args(argv)
    if args.one:
        return pack(args)
    if args.memory:
        return memory(args)
    if args.source is None:
        raise UserError("name the folder of images, or give --memory N1,N2")
    return compare(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shard_build", description=__doc__.split("\n\n")[0])
    parser.add_argument("source", type=Path, nargs="?", help="a folder of images")
    parser.add_argument("--recipe", type=Path, metavar="YAML", help="how it lies on disk, as for `shard build`")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="processes")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--without-peers", action="store_true", help="leave litdata and mosaicml-streaming out")
    parser.add_argument("--memory", metavar="N1,N2", help="memory of builds of so many made-up images")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="every number of every round")
    parser.add_argument("--one", choices=tuple(CONTESTANTS), help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    return parser


def pack(args: argparse.Namespace) -> int:
    """In a process of its own: one contestant packs ``args.source`` into the folder ``args.to``."""
    chosen = CONTESTANTS[args.one]
    for name in chosen.imports:
        importlib.import_module(name)
    start, before = time.perf_counter(), cpu()
    images = chosen.pack(args.source, args.to, args.recipe, args.workers)
    packed = time.perf_counter()
    size = 0
    for path in [*args.to.rglob("*"), args.to]:
        size += path.stat().st_size if path.is_file() else 0
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    end, after = time.perf_counter(), cpu()
    measured = {
        "images": images,
        "seconds": end - start,
        "fsync": end - packed,
        "cpu": after - before,
        "bytes": size,
        "unwaited": running(),
        "stages": STAGES,
    }
    args.to.with_suffix(".json").write_text(json.dumps(measured))
    return 0


def compare(args: argparse.Namespace) -> int:
    """All rounds of all contestants, the table, the verdict."""
    if not args.source.is_dir():
        raise UserError(f"{args.source} is no folder")
    files = listed(args.source)
    if not files:
        raise UserError(f"{args.source} holds no .jpg or .png files")
    names = [name for name, one in CONTESTANTS.items() if not (args.without_peers and one.peer)]
    if any(CONTESTANTS[name].peer for name in names):
        _need_peers()
    size = sum(len(Path(path).read_bytes()) for path, _ in files)  # and all of it is in the page cache from here on
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            rounds[name].append(measure(name, args.source, args.recipe, args.workers))
    print(
        f"{args.source.resolve().name}: {len(files):,} images, {size / MB:.1f} MB, {args.workers} workers on "
        f"{len(os.sched_getaffinity(0))} cores, {args.rounds} rounds; Python {platform.python_version()}\n"
    )
    _table(names, rounds, args.workers)
    print(f"\n{NOTES}\n")
    verdict(rounds)
    _save(args, rounds)
    return 0


def _need_peers() -> None:
    """:class:`UserError` unless the peers' environment is there and complete."""
    wanted = sorted({module for one in CONTESTANTS.values() if one.peer for module in one.imports})
    look = f"import importlib.util as u, sys; sys.exit(any(u.find_spec(m) is None for m in {wanted}))"
    if not PEERS.exists() or subprocess.run([PEERS, "-c", look], check=False).returncode:
        raise UserError(f"{' and '.join(wanted)} are not installed; run `make bench-setup`, or give --without-peers")


def measure(name: str, source: Path, recipe: Path | None, workers: int) -> dict[str, Any]:
    """One contestant in a fresh process: what it says of itself, its memory, and what others did meanwhile."""
    python = str(PEERS) if CONTESTANTS[name].peer else sys.executable
    with tempfile.TemporaryDirectory(prefix="shard_build-") as scratch:
        out = Path(scratch, "out")
        words = [python, "-m", "benchmarks.shard_build", str(source.resolve()), "--one", name, "--to", str(out)]
        words += ["--workers", str(workers), *(["--recipe", str(recipe.resolve())] if recipe else [])]
        with Path(scratch, "log").open("w+") as log:
            before, start = busy(), time.perf_counter()
            process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            peaks, unmapped, usage = watch(process)
            whole, used = time.perf_counter() - start, busy() - before
            if process.returncode:
                log.seek(0)
                said = log.read().strip().splitlines() or [f"exit code {process.returncode}"]
                raise Fault(f"{name} failed: {said[-1]}")
        measured: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    own = peaks.pop(process.pid, 0)
    measured |= {
        "whole": whole,
        "others": max(0.0, (used - usage - measured["unwaited"]) / whole),
        "peak": own,
        "peak_unmapped": unmapped[process.pid],
        "peak_worker": max(peaks.values(), default=0),
        "peak_all": own + sum(peaks.values()),
    }
    return measured


def _table(names: list[str], rounds: dict[str, list[dict[str, Any]]], workers: int) -> None:
    head = ("", "processes", "decodes", "images/s", "seconds", "[whole]", "fsync s", "x floor", "CPU s", "MB written",
            "peak MB", "others")  # fmt: skip
    rows = [head]
    for name in names:
        one, best = CONTESTANTS[name], min(rounds[name], key=lambda r: r["seconds"])
        rate = [best["images"] / value for value in spread(rounds[name])]
        rows.append((
            one.title, str(one.processes or workers), "yes" if one.decodes else "no", _pair(rate, 0),
            _pair(spread(rounds[name]), 2), f"[{_pair(spread(rounds[name], 'whole'), 1)}]", f"{best['fsync']:.2f}",
            _pair(ratio(rounds, name, "floor"), 2), f"{best['cpu']:.1f}", f"{best['bytes'] / MB:.1f}",
            " + ".join(f"{best[key] / MB:.0f}" for key in ("peak", "peak_worker")) + f", {best['peak_all'] / MB:.0f}",
            _pair((statistics.mean(r["others"] for r in rounds[name]), max(r["others"] for r in rounds[name])), 2),
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        cells = [cell.rjust(width) if number else cell.ljust(width)
                 for number, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        print("  ".join(cells).rstrip())


def spread(rounds: Sequence[dict[str, Any]], key: str = "seconds") -> tuple[float, float]:
    """Best and median."""
    values = [one[key] for one in rounds]
    return min(values), statistics.median(values)


def ratio(rounds: dict[str, list[dict[str, Any]]], name: str, other: str) -> tuple[float, float]:
    """Seconds of one contestant over another's: of the best rounds, and of the medians."""
    best, median = (a / b for a, b in zip(spread(rounds[name]), spread(rounds[other]), strict=True))
    return best, median


def _pair(values: tuple[float, ...] | list[float], digits: int) -> str:
    return " / ".join(f"{value:,.{digits}f}" for value in values)


def verdict(rounds: dict[str, list[dict[str, Any]]]) -> None:
    """Ours against the floor and against each peer."""
    best, median = ratio(rounds, "ours", "floor")
    print(
        f"ours / decoding floor = {best:.2f} (goal ≤ {GOAL}): {'met' if best <= GOAL else 'missed'};"
        f" {median:.2f} of the medians"
    )
    fastest = min(rounds["ours"], key=lambda one: one["seconds"])
    stages, floor = fastest["stages"], spread(rounds["floor"])[0]
    ends = [*(stages[name] for name in ("first image", "decoding", "comparing", "writing shards")), fastest["seconds"]]
    spent = [end - begin for begin, end in pairwise([0.0, *ends])]
    names = ("until the first image", "decoding", "comparing", "writing shards", "index, manifest, opening")
    print("of ours: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in zip(names, spent, strict=True)))
    print(f"(ours - comparing) / decoding floor = {(fastest['seconds'] - spent[2]) / floor:.2f}")
    for name in ("webdataset", "litdata", "mds"):
        if name in rounds:
            best, median = ratio(rounds, "ours", name)
            print(f"ours / {CONTESTANTS[name].title} = {best:.2f}; {median:.2f} of the medians")


def memory(args: argparse.Namespace) -> int:
    """Peak memory of builds of ever more images."""
    try:
        counts = [int(text) for text in args.memory.split(",")]
    except ValueError:
        counts = []
    if len(counts) < 2 or min(counts) < 20:
        raise UserError(
            f"--memory {args.memory} must be two or more numbers of images of at least 20, as in 1000,10000"
        )
    rounds = {}
    print(f"{'images':>8}{'seconds':>10}{'peak MB':>10}{'without mapped files':>22}{'largest worker MB':>20}")
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="shard_build-") as scratch:
            draw_collection(Path(scratch), count)
            one = rounds[str(count)] = measure("ours", Path(scratch), None, args.workers)
        print(f"{count:8,}{one['seconds']:10.1f}{one['peak'] / MB:10.0f}{one['peak_unmapped'] / MB:22.0f}"
              f"{one['peak_worker'] / MB:20.0f}", flush=True)  # fmt: skip
    few, many = rounds[str(counts[0])], rounds[str(counts[-1])]
    times = {name: many[name] / max(1, few[name]) for name in ("peak", "peak_unmapped", "peak_worker")}
    grown = (many["peak_unmapped"] - few["peak_unmapped"]) / (counts[-1] - counts[0])
    print(
        f"{counts[-1] / counts[0]:.0f} times the images: {times['peak']:.2f} times the memory; without mapped files"
        f" {times['peak_unmapped']:.2f} times, {grown / 1e3:.1f} kB an image; workers {times['peak_worker']:.2f} times"
    )
    _save(args, rounds)
    return 0


def draw_collection(folder: Path, count: int) -> None:
    """``count`` different JPEGs of 64 x 64 pixels in four classes: ellipses of random smooth texture on black."""
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


def _save(args: argparse.Namespace, rounds: dict[str, Any]) -> None:
    """Write every number, where it was asked for."""
    if args.out is not None:
        about = {"source": args.source and args.source.resolve().name, "workers": args.workers, "memory": args.memory}
        about |= {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0)), "rounds": rounds}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(run(main))
