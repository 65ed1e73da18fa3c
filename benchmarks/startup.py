"""CPU time of a rank from its command to its first step, with and without compiled bytecode.

``python -m benchmarks.startup [SHARDS] [--repeats 3] [--imports]`` starts one process that trains a tiny network, and
ends it after the first step. Bytecode is kept in a temporary folder: empty for "without", filled by an earlier start
for "with". ``--imports`` also prints the packages that take most of the time.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.support.common import ROOT, training_shards
from brain_dist.errors import Fault, run

SETTINGS = [
    *("--model.name", "test_convnext", "--data.size", "32", "--data.threads", "1", "--train.precision", "fp32"),
    *("--train.global_batch", "8", "--train.micro_batch", "8", "--track.wandb", "off", "--run.device", "cpu"),
]
FIRST_STEP = "CPU seconds to the first step: "


def main() -> int:
    """Start ranks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("shards", nargs="?", type=Path, help="a built shard folder (default: phantoms)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--imports", action="store_true", help="print the packages that take most of the time")
    parser.add_argument("--rank", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        return train_one_step(arguments.rank)
    with tempfile.TemporaryDirectory() as folder:
        shards = arguments.shards or training_shards(Path(folder), 16)
        start(shards, Path(folder), "first", write=True)
        times = {
            "with": [start(shards, Path(folder), "first", write=True)[0] for _ in range(arguments.repeats)],
            "without": [start(shards, Path(folder), "empty", write=False)[0] for _ in range(arguments.repeats)],
        }
        imports = start(shards, Path(folder), "first", write=True, trace=True)[1] if arguments.imports else ""
    print("| bytecode | CPU seconds from the command to the first step | starts |\n|---|--:|--:|")
    for name, seconds in times.items():
        print(
            f"| {name} | {statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f}) | {len(seconds)} |"
        )
    if imports:
        print_imports(imports)
    return 0


def start(shards: Path, folder: Path, cache: str, *, write: bool, trace: bool = False) -> tuple[float, str]:
    """Start a rank whose bytecode is in ``folder/cache``; its CPU seconds to the first step, and what it printed.

    Raises:
        Fault: the rank failed.
    """
    with tempfile.TemporaryDirectory(dir=folder) as runs:
        paths = ["--data.shards", str(shards), "--run.dir", runs, "--run.name", "run"]
        command = [sys.executable, *(["-X", "importtime"] if trace else []), "-m", "benchmarks.startup", "--rank"]
        variables = {"PYTHONPYCACHEPREFIX": str(folder / cache), "PYTHONDONTWRITEBYTECODE": "" if write else "1"}
        done = subprocess.run(
            [*command, *SETTINGS, *paths], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if FIRST_STEP not in done.stdout:
        raise Fault(f"the rank failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    return float(done.stdout.rpartition(FIRST_STEP)[2]), done.stderr


def train_one_step(settings: list[str]) -> int:
    """One rank: train, print the CPU time after the first step and end."""
    from brain_dist import train
    from brain_dist.training.engine import Engine

    original = Engine.step

    def step(self: Engine, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"{FIRST_STEP}{time.process_time() + children.ru_utime + children.ru_stime:.3f}", flush=True)
        os._exit(0)

    Engine.step = step  # type: ignore[assignment, method-assign]
    return train.main(settings)


def print_imports(text: str) -> None:
    """Print the time of the imports of each package, itself without the packages that it imports."""
    seconds: Counter[str] = Counter()
    for microseconds, package in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+([^\s.]+)", text):
        seconds[package] += int(microseconds)
    print("\n| package | seconds |\n|---|--:|")
    for package, total in seconds.most_common(15):
        print(f"| {package} | {total / 1e6:.2f} |")


if __name__ == "__main__":
    raise SystemExit(run(main))
