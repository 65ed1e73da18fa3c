"""What a device waits for its batches when storage is slow, with and without reading ahead.

``python -m benchmarks.slow_storage [SHARDS] [--delay 5] [--stall 1250] [--step 250]``. Storage is made slow by a delay
before every read of an image, or by a longer one before a single read, in this process: it stands for a network file
system that answers late, but not for one that lacks bandwidth. The step is a pause, in which the processor is free as
it is during a step on a GPU. DALI feeds the images.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.support.common import training_shards
from brain_dist.config import AugmentConfig, DataConfig
from brain_dist.errors import run
from brain_dist.profiling.stopwatch import replaced
from brain_dist.store import reader
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.stream import dali_loader
from brain_dist.stream.batches import open_loader, training_jobs
from brain_dist.stream.plan import TrainingPlan

BATCH, WARMUP = 32, 6


def main() -> int:
    """Take the steps in each way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("shards", nargs="?", type=Path, help="a built shard folder (default: phantoms)")
    parser.add_argument("--delay", type=float, default=5.0, help="milliseconds before each read (default: 5)")
    parser.add_argument("--stall", type=float, default=1250.0, help="milliseconds before one read (default: 1250)")
    parser.add_argument("--step", type=float, default=250.0, help="milliseconds of a step (default: 250)")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    print("| storage | images are read | waiting for a batch, median | longest |\n|---|---|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset(arguments.shards or training_shards(Path(folder), 4 * BATCH))
        middle = (WARMUP + arguments.steps // 2) * BATCH
        storages: dict[str, Callable[[int], float]] = {
            "as it is": lambda number: 0.0,
            f"{arguments.delay:g} ms a read": lambda number: arguments.delay,
            f"one read of {arguments.stall:g} ms": lambda number: arguments.stall if number == middle else 0.0,
        }
        for name, delay in storages.items():
            for ahead in (False, True):
                waits = waiting_times(dataset, delay, arguments.step / 1e3, arguments.steps, ahead=ahead)
                print(
                    f"| {name} | {'ahead' if ahead else 'when needed'}"
                    f" | {1e3 * statistics.median(waits):.0f} ms | {1e3 * max(waits):.0f} ms |"
                )
    return 0


def waiting_times(
    dataset: Dataset, delay: Callable[[int], float], pause: float, steps: int, *, ahead: bool
) -> list[float]:
    """Seconds that the main thread waits for the batch of each step; ``delay`` gives the milliseconds of each read."""
    pread, numbers = os.pread, itertools.count()

    def slow_pread(descriptor: int, size: int, offset: int) -> bytes:
        time.sleep(delay(next(numbers)) / 1e3)
        return pread(descriptor, size, offset)

    rows = dataset.rows("train")
    total = steps + WARMUP
    plan = TrainingPlan(
        rows=rows, shard=rows * 0, label=rows * 0, seed=0, epochs=-(-total * BATCH // len(rows)) + 1,
        global_batch=BATCH, micro_batch=BATCH,
    )  # fmt: skip
    config = DataConfig(loader="dali", size=128, threads=1)
    jobs = training_jobs(dataset, config, AugmentConfig(), plan.micro_batches(0, 1), seed=0)
    read = reader.read_ahead if ahead else read_when_needed
    waits = []
    with replaced(os, "pread", slow_pread), replaced(dali_loader, "read_ahead", read):
        batches = open_loader(
            config, dataset, jobs, augmented=True, micro_batch=BATCH, device=torch.device("cpu")
        )  # fmt: skip
        for _ in range(total):
            start = time.perf_counter()
            next(batches)
            waits.append(time.perf_counter() - start)
            time.sleep(pause)
    return waits[WARMUP:]


def read_when_needed(
    read: Callable[[Any], Any], batches: Iterable[Any], prefetch: int
) -> Generator[tuple[Any, Any], None, None]:
    """What ``read_ahead`` does, without threads."""
    for item in batches:
        yield item, read(item)


if __name__ == "__main__":
    raise SystemExit(run(main))
