"""What it costs that loaders compare each sample's crc32 as they read it.

``python -m benchmarks.checksums SHARDS`` reads every sample in random order from the page cache, in turn with and
without the comparison, and decodes the same bytes with PIL and with DALI on the CPU, several rounds interleaved in
one process and one thread. It prints the best and the median round of each.
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


class Equal:
    """Compares equal to any checksum: the same code then runs without crc32 itself."""

    def __ne__(self, other: object) -> bool:
        return False


def dali(encoded: list[bytes]) -> Callable[[], None]:
    """Decodes all images to gray in DALI's CPU decoder with one thread."""
    from nvidia.dali import fn, pipeline_def, types

    arrays = [np.frombuffer(data, dtype=np.uint8) for data in encoded]
    whole = [arrays[at : at + BATCH] for at in range(0, len(arrays) - BATCH + 1, BATCH)]

    @pipeline_def(batch_size=BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def graph() -> Any:
        given = fn.external_source(source=whole, cycle=True, dtype=types.UINT8, ndim=1)
        return fn.decoders.image(given, device="cpu", output_type=types.GRAY)

    made = graph()
    made.build()

    def decode() -> None:
        for _ in whole:
            made.run()

    return decode


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("shards")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    dataset = open_dataset(arguments.shards)
    shard_reader, rows = ShardReader(dataset), np.random.default_rng(0).permutation(len(dataset)).tolist()
    encoded = [shard_reader.read(row) for row in rows]  # the page cache is warm from here on
    same, zlib = Equal(), reader.zlib
    blind = SimpleNamespace(crc32=lambda data: same)

    def read(checks: Any) -> None:
        reader.zlib = checks  # type: ignore[attr-defined]
        for row in rows:
            shard_reader.read(row)
        reader.zlib = zlib  # type: ignore[attr-defined]

    jobs: dict[str, tuple[Callable[[], object], int]] = {
        "read": (lambda: read(blind), len(rows)),
        "read and crc32": (lambda: read(zlib), len(rows)),
        "crc32 alone": (lambda: [zlib.crc32(data) for data in encoded], len(rows)),
        "decode, PIL": (lambda: [Image.open(io.BytesIO(data)).convert("L") for data in encoded], len(rows)),
        "decode, DALI": (dali(encoded), len(rows) // BATCH * BATCH),
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for number in range(arguments.rounds + 1):
        for name, (job, images) in jobs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            spent = (time.perf_counter() - wall) / images, (time.process_time() - cpu) / images
            took[name] += [spent] if number else []  # the first round warms up
    size = sum(map(len, encoded)) / len(encoded)
    print(
        f"{dataset.name}: {len(rows)} images of {size / 1e3:.1f} kB on average, {arguments.rounds} rounds, one thread"
    )
    print(f"{'':16}{'images/s':>10}{'MB/s':>9}{'CPU µs/image':>14}   (medians){'best images/s':>18}")
    cpu_of = {name: statistics.median(cpu for _, cpu in times) for name, times in took.items()}
    for name, times in took.items():
        rate, best = 1 / statistics.median(wall for wall, _ in times), 1 / min(wall for wall, _ in times)
        print(f"{name:16}{rate:10.0f}{rate * size / 1e6:9.0f}{cpu_of[name] * 1e6:14.1f}{best:30.0f}")
    plain, checked, alone = (cpu_of[name] for name in ("read", "read and crc32", "crc32 alone"))
    shares = ", ".join(f"{alone / cpu_of[name]:.2%} of {name}" for name in ("decode, PIL", "decode, DALI"))
    print(f"reading with crc32 takes {checked / plain:.2f} times the CPU of reading; crc32 is {shares}")


if __name__ == "__main__":
    main()
