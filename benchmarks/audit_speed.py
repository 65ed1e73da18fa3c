"""Time to find all copies: ``python -m benchmarks.audit_speed DIR [DIR…] [--images N]``.

Decodes the collections once. Then it measures the CPU time of comparing all pairs by itself, for growing numbers
of images, beside the product of all full structures (4 x N² x 4096 multiplications), which finds aligned copies only.
What the last two numbers of images say about the growth is extrapolated to a million.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from brain_dist.collection.discovery import find_records
from brain_dist.collection.examination import examine_all
from brain_dist.collection.recipes import default_recipe
from brain_dist.common.cores import cpu_cores
from brain_dist.common.scratch import concatenated
from brain_dist.common.workers import worker_pool
from brain_dist.copies import registration, search, similarity
from brain_dist.errors import UserError, run

PLAIN = 4096  # images for the plain product; more would take minutes


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit_speed", description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--images", type=int, default=20000, metavar="N", help="maximum (default: 20000)")
    arguments = parser.parse_args()
    thumbs = decode(arguments.folders, cpu_cores())[: arguments.images]
    if len(thumbs) < 8:
        raise UserError("fewer than 8 images; give larger collections")
    title = f"all pairs of {len(thumbs):,} images; CPU seconds of all threads, peak memory so far with mapped files"
    table = Table(title=title, title_justify="left")
    for column in ("images", "aligned", "cropped and rotated", "together", "peak MB", "pairs found", "plain product"):
        table.add_column(column, justify="right")
    together = {}
    for count in sorted({min(PLAIN, len(thumbs)), len(thumbs) // 2, len(thumbs)}):
        sample = np.asarray(thumbs[np.random.default_rng(0).permutation(len(thumbs))[:count]])
        aligned_s, aligned = timed(lambda sample=sample: similarity.aligned_pairs(sample))
        joined = search.connected(count, np.column_stack([aligned.first, aligned.second]))
        moved_s, moved = timed(lambda sample=sample, joined=joined: registration.moved_pairs(sample[:, 1], joined))
        together[count] = aligned_s + moved_s
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        plain_s = f"{timed(lambda sample=sample: plain_product(sample))[0]:.1f}" if count <= PLAIN else ""
        pairs = f"{len(aligned.first):,} + {len(moved.first):,}"
        times = (f"{value:.1f}" for value in (aligned_s, moved_s, together[count]))
        table.add_row(f"{count:,}", *times, f"{peak:.0f}", pairs, plain_s)
    Console(width=120).print(table)
    print_growth(together)
    print(f"load average of the last minute: {os.getloadavg()[0]:.1f}")
    return 0


def print_growth(seconds: dict[int, float]) -> None:
    """Print the part of the time that each image costs, the part that each pair costs, and what follows for more."""
    if len(seconds) < 2:
        return
    (few, few_s), (many, many_s) = list(seconds.items())[-2:]
    by_pair = (many_s / many - few_s / few) / (many - few)
    by_image = many_s / many - by_pair * many
    print(f"{1e3 * by_image:.2f} CPU ms an image and {1e9 * 2 * by_pair:.1f} CPU ns a pair, from the last two rows")
    for count in (count for count in (100_000, 1_000_000) if count > many):
        hours = (by_image * count + by_pair * count**2) / 3600
        print(f"extrapolated to {count:,} images: {hours:.2f} CPU hours")


def decode(folders: list[Path], workers: int) -> np.ndarray:
    """Thumbnails uint8 [N, 2, 64, 64] of all images."""
    parts = []
    start = time.perf_counter()
    with worker_pool(workers) as pool:
        for folder in folders:
            recipe = default_recipe(folder)
            records = find_records(recipe, folder)[0]
            progress = lambda done, total: None  # noqa: E731
            parts.append(examine_all(records, folder, recipe, pool, skip_bad=True, progress=progress).thumbs)
    thumbs = concatenated(parts)
    print(f"decoding {len(thumbs):,} images with {workers} processes: {time.perf_counter() - start:.1f} s")
    return thumbs


def plain_product(thumbs: np.ndarray) -> int:
    """Number of similarities above the threshold, counted block by block."""
    count = 0
    for frame in range(2):
        full = similarity.structure(thumbs[:, frame])
        mirrored = similarity.structure(thumbs[:, frame, :, ::-1])
        for low in range(0, len(full), 1024):
            for other in (full, mirrored):
                count += int((full[low : low + 1024] @ other.T >= similarity.ALIGNED_THRESHOLD).sum())
    return count


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """(CPU seconds of all threads, result) of ``work()``."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


if __name__ == "__main__":
    raise SystemExit(run(main))
