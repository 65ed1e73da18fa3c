"""Cost of the crc32 check of each sample that a loader reads.

``python -m benchmarks.checksums SHARDS`` reads every sample in random order from the page cache, with and without the
check, and decodes the same bytes with PIL and with DALI on the CPU. Rounds are interleaved in one process and one
thread. It prints the median and the best round of each.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from brain_dist.store import reader
from brain_dist.store.dataset import open_dataset
from brain_dist.store.reader import ShardReader

BATCH = 64
Task = tuple[Callable[[], object], int]  # function, number of images


class EqualToAll:
    """A checksum that equals every other one, so that the reader runs the same code without crc32."""

    def __ne__(self, other: object) -> bool:
        return False


def dali_decoder(encoded: list[bytes]) -> Callable[[], None]:
    """A function that decodes all images to gray with DALI's CPU decoder on one thread."""
    from nvidia.dali import fn, pipeline_def, types

    arrays = [np.frombuffer(data, dtype=np.uint8) for data in encoded]
    batches = [arrays[first : first + BATCH] for first in range(0, len(arrays) - BATCH + 1, BATCH)]

    @pipeline_def(batch_size=BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def decode_images() -> Any:
        data = fn.external_source(source=batches, cycle=True, dtype=types.UINT8, ndim=1)
        return fn.decoders.image(data, device="cpu", output_type=types.GRAY)

    pipeline = decode_images()
    pipeline.build()

    def decode() -> None:
        for _ in batches:
            pipeline.run()

    return decode


def measure(tasks: dict[str, Task], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(wall, CPU) seconds per image of each round of each task, after one round of warm-up."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, (task, images) in tasks.items():
            wall, cpu = time.perf_counter(), time.process_time()
            task()
            if number:
                seconds[name].append(((time.perf_counter() - wall) / images, (time.process_time() - cpu) / images))
    return seconds


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("shards")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    dataset = open_dataset(arguments.shards)
    shard_reader, rows = ShardReader(dataset), np.random.default_rng(0).permutation(len(dataset)).tolist()
    encoded = [shard_reader.read(row) for row in rows]  # also fills the page cache
    zlib, equal = reader.zlib, EqualToAll()
    unchecked = SimpleNamespace(crc32=lambda data: equal)

    def read(checksums: Any) -> None:
        reader.zlib = checksums
        for row in rows:
            shard_reader.read(row)
        reader.zlib = zlib

    tasks: dict[str, Task] = {
        "read": (lambda: read(unchecked), len(rows)),
        "read and crc32": (lambda: read(zlib), len(rows)),
        "crc32 alone": (lambda: [zlib.crc32(data) for data in encoded], len(rows)),
        "decode, PIL": (lambda: [Image.open(io.BytesIO(data)).convert("L") for data in encoded], len(rows)),
        "decode, DALI": (dali_decoder(encoded), len(rows) // BATCH * BATCH),
    }
    seconds = measure(tasks, arguments.rounds)
    size = sum(map(len, encoded)) / len(encoded)
    print(
        f"{dataset.name}: {len(rows)} images of {size / 1e3:.1f} kB on average, {arguments.rounds} rounds, one thread"
    )
    print(f"{'':16}{'images/s':>10}{'MB/s':>9}{'CPU µs/image':>14}   (medians){'best images/s':>18}")
    cpu = {name: statistics.median(cpu for _, cpu in times) for name, times in seconds.items()}
    for name, times in seconds.items():
        rate, best = 1 / statistics.median(wall for wall, _ in times), 1 / min(wall for wall, _ in times)
        print(f"{name:16}{rate:10.0f}{rate * size / 1e6:9.0f}{cpu[name] * 1e6:14.1f}{best:30.0f}")
    shares = ", ".join(f"{cpu['crc32 alone'] / cpu[name]:.2%} of {name}" for name in ("decode, PIL", "decode, DALI"))
    print(f"reading with crc32 takes {cpu['read and crc32'] / cpu['read']:.2f} times the CPU of reading; crc32 is"
          f" {shares}")  # fmt: skip


if __name__ == "__main__":
    main()
