"""The process group: rendezvous, collectives on Python objects, and how a lost rank shows."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from brain_dist.errors import UserError
from brain_dist.ranks.world import World

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def process_group(world: World, device: torch.device, timeout: float = 600.0) -> Iterator[None]:
    """torch.distributed for the length of a block, also for a world of one (DeepSpeed wants a group).

    ``timeout``: seconds that training gives a rank without progress; collectives give up later than that, so that
    :mod:`brain_dist.ranks.watch` can name the rank first.
    """
    import datetime

    import torch
    import torch.distributed as dist

    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.local_size))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if world.size == 1:
        store: Any = dist.HashStore()
    else:
        store = rendezvous(world, serve=True)
    for name, value in (
        ("RANK", world.rank),
        ("WORLD_SIZE", world.size),
        # DeepSpeed takes this number's GPU: where srun shows each task only its own GPU, that is number 0
        ("LOCAL_RANK", world.local_rank if device.index is None else device.index),
        ("MASTER_ADDR", world.address),
        ("MASTER_PORT", world.port),
    ):
        os.environ[name] = str(value)  # DeepSpeed reads these even when the group exists
    patience = datetime.timedelta(seconds=1.5 * timeout + 60)
    os.environ["DEEPSPEED_TIMEOUT"] = str(
        max(1, math.ceil(patience.total_seconds() / 60))
    )  # of its own groups, minutes
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=patience)
    try:
        yield
    finally:
        deepspeed = sys.modules.get("deepspeed")
        if deepspeed is not None and deepspeed.comm.is_initialized():
            deepspeed.comm.destroy_process_group()  # torch's, and what DeepSpeed remembers of it
        else:
            dist.destroy_process_group()


def rendezvous(world: World, *, serve: bool = False) -> Any:
    """A connection to where the ranks of this start meet: torch's store, its keys under the start's own name.

    ``serve``: on rank 0, be that place; UserError where the port is somebody else's.
    """
    import torch.distributed as dist

    # torchrun's agent serves its workers
    serve = serve and world.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    handed = os.environ.pop("BRAIN_DIST_STORE_FD", None) if serve else None  # launch/local.py listens already
    if handed is not None:
        os.set_inheritable(int(handed), False)  # nobody whom this process starts shall hold the port
    try:
        store = dist.TCPStore(
            world.address, world.port, world.size, is_master=serve, wait_for_workers=False,
            master_listen_fd=None if handed is None else int(handed),
        )  # fmt: skip
    except dist.DistNetworkError as error:
        if serve and "EADDRINUSE" in str(error):
            raise UserError(
                f"port {world.port} of {world.address} is in use, and the ranks are to meet there;"
                " set MASTER_PORT to a free one"
            ) from error
        raise
    return dist.PrefixStore(world.meeting, store)


def lost_contact(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank is gone, rather than by a mistake on this one."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def gather_objects(item: Any, world: World) -> list[Any]:
    """``item`` of every rank, in rank order, on every rank."""
    import torch.distributed as dist

    if world.size == 1:
        return [item]
    items: list[Any] = [None] * world.size
    dist.all_gather_object(items, item)
    return items
