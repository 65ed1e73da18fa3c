"""How many threads each rank computes with."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from brain_dist.common.cores import core_limits
from brain_dist.errors import UserError
from brain_dist.ranks.world import World


@dataclass(frozen=True)
class Threads:
    """The threads that torch's operations of one rank use, and why: ``reason`` follows the number in a sentence."""

    count: int
    reason: str

    def __str__(self) -> str:
        return f"{self.count} thread{'s' if self.count > 1 else ''} ({self.reason})"


def choose_threads(world: World, loading: int = 0) -> Threads:
    """The threads of this rank: OMP_NUM_THREADS, or the rank's share of the cores, less those that load data.

    A barrier of threads that outnumber the cores waits for the slowest, so more threads than cores are slower than one.

    Args:
        world: this process among all processes.
        loading: threads of the rank that decode images. They get at most a quarter of its cores.

    Raises:
        UserError: OMP_NUM_THREADS is not a positive integer.
    """
    chosen = threads_of_user()
    if chosen:
        return Threads(chosen, "OMP_NUM_THREADS")
    limits = core_limits()
    sharing = world.local_size
    if world.launcher == "srun":  # each rank is a task, with cores of its own
        sharing = 1
        on_node = os.environ.get("SLURM_CPUS_ON_NODE", "")
        if on_node.isdecimal():
            limits.setdefault("SLURM", max(1, int(on_node) // world.local_size))
    limit = min(limits, key=lambda name: limits[name])
    cores = limits[limit]
    share = max(1, cores // sharing)
    reason = f"{cores} core{'s' if cores > 1 else ''}{f' by {limit}' if limit != 'affinity' else ''}"
    if sharing > 1:
        reason += f" for {sharing} ranks"
    reserved = min(loading, share // 4)
    if reserved:
        reason += f", {reserved} for loading"
    return Threads(share - reserved, reason)


def threads_of_user() -> int | None:
    """OMP_NUM_THREADS; None if it is not set.

    Raises:
        UserError: it is not a positive integer.
    """
    text = os.environ.get("OMP_NUM_THREADS", "")
    if not text:
        return None
    first = text.split(",")[0].strip()  # OpenMP: one number per nesting level
    if not first.isdecimal() or not int(first):
        raise UserError(f"OMP_NUM_THREADS={text}: must be a positive integer")
    return int(first)


def limit_torch(threads: int) -> None:
    """Let torch compute with so many threads, if it is imported: a model that it does not compute needs no torch."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
