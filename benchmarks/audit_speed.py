"""How long finding all copies takes: ``python -m benchmarks.audit_speed DIR [DIR…] [--images N]``.

Decodes the collections once, then times the comparison of all pairs, alone, for growing numbers of their images, beside
the plain way: the product of all full structures (4 x N² x 4096 multiplications), which finds aligned copies only.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from brain_dist.collection.examination import examine_all
from brain_dist.collection.recipes import default_recipe
from brain_dist.collection.records import find_records
from brain_dist.common.scratch import concatenated
from brain_dist.common.workers import worker_pool
from brain_dist.copies import registration, search, similarity
from brain_dist.errors import UserError, run

PLAIN = 4096  # images for the plain way; more would take minutes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit_speed", description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--images", type=int, default=20000, metavar="N", help="at most so many (default: 20000)")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    thumbs = decoded(args.folders, cores)[: args.images]
    if len(thumbs) < 8:
        raise UserError("too few images to time; give larger collections")
    table = Table(title=f"all pairs of {len(thumbs):,} images, {cores} cores", title_justify="left")
    for column in ("images", "aligned s", "cut and turned s", "together s", "pairs found", "the plain way s"):
        table.add_column(column, justify="right")
    for count in sorted({min(PLAIN, len(thumbs)), len(thumbs) // 2, len(thumbs)}):
        some = np.asarray(thumbs[np.random.default_rng(0).permutation(len(thumbs))[:count]])
        aligned_s, aligned = timed(lambda some=some: similarity.aligned_pairs(some))
        joined = search.connected(count, np.column_stack([aligned.first, aligned.second]))
        moved_s, moved = timed(lambda some=some, joined=joined: registration.moved_pairs(some[:, 1], joined))
        plain_s = f"{timed(lambda some=some: plain(some))[0]:.1f}" if count <= PLAIN else ""
        found = f"{len(aligned.first):,} + {len(moved.first):,}"
        table.add_row(f"{count:,}", f"{aligned_s:.1f}", f"{moved_s:.1f}", f"{aligned_s + moved_s:.1f}", found, plain_s)
    Console(width=120).print(table)
    print(f"load of the machine over the last minute: {os.getloadavg()[0]:.1f}")
    return 0


def decoded(folders: list[Path], workers: int) -> np.ndarray:
    """Thumbnails uint8 [N, 2, 64, 64] of all images."""
    parts = []
    start = time.perf_counter()
    with worker_pool(workers) as pool:
        for folder in folders:
            recipe = default_recipe(folder)
            records = find_records(recipe, folder)[0]
            parts.append(
                examine_all(records, folder, recipe, pool, skip_bad=True, progress=lambda done, total: None)[2]
            )
    thumbs = concatenated(parts)
    print(f"decoding {len(thumbs):,} images with {workers} processes: {time.perf_counter() - start:.1f} s")
    return thumbs


def plain(thumbs: np.ndarray) -> int:
    """Number of similarities above the threshold, counted block by block."""
    found = 0
    for frame in range(2):
        full = similarity.structure(thumbs[:, frame])
        mirrored = similarity.structure(thumbs[:, frame, :, ::-1])
        for low in range(0, len(full), 1024):
            for other in (full, mirrored):
                found += int((full[low : low + 1024] @ other.T >= similarity.ALIGNED_THRESHOLD).sum())
    return found


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what the work gives)."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    raise SystemExit(run(main))
