"""The process group: rendezvous, collectives on Python objects, and work that one rank does for all."""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from brain_dist.errors import Fault, UserError
from brain_dist.ranks.world import World

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def process_group(world: World, device: torch.device, timeout: float = 600.0) -> Iterator[None]:
    """Initialise torch.distributed for the length of a block, also for a world of one (DeepSpeed needs a group).

    Args:
        world: this process among all processes.
        device: chooses the backend: gloo, and NCCL for tensors on a GPU.
        timeout: seconds without progress after which :mod:`brain_dist.ranks.watch` ends the run. Collectives time out
            later than that, so that the watch can name the rank first.
    """
    import torch
    import torch.distributed as dist

    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.local_size))
    store: Any = dist.HashStore() if world.size == 1 else rendezvous(world, serve=True)
    patience = datetime.timedelta(seconds=1.5 * timeout + 60)
    _export_variables(world, device, patience)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=patience)
    try:
        yield
    finally:
        deepspeed = sys.modules.get("deepspeed")
        if deepspeed is not None and deepspeed.comm.is_initialized():
            deepspeed.comm.destroy_process_group()  # torch's group and DeepSpeed's references to it
        else:
            dist.destroy_process_group()


def _export_variables(world: World, device: torch.device, timeout: datetime.timedelta) -> None:
    """Set the environment variables that DeepSpeed reads even if a process group exists."""
    # DeepSpeed uses the GPU with this number, which is 0 if srun shows each task only one GPU
    local_rank = world.local_rank if device.index is None else device.index
    os.environ |= {
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_RANK": str(local_rank),
        "MASTER_ADDR": world.address,
        "MASTER_PORT": str(world.port),
        "DEEPSPEED_TIMEOUT": str(max(1, math.ceil(timeout.total_seconds() / 60))),  # minutes, for DeepSpeed's groups
    }


def rendezvous(world: World, *, serve: bool = False) -> Any:
    """Connect to the store of this start: a torch store whose keys have the prefix ``world.start_id``.

    Args:
        world: its address and port are those of the store.
        serve: start the store's server if this is rank 0.

    Raises:
        UserError: the port is in use by another process.
    """
    import torch.distributed as dist

    # under torchrun, its agent runs the server
    serve = serve and world.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    # launch/local.py passes a socket that already listens
    socket = os.environ.pop("BRAIN_DIST_STORE_FD", None) if serve else None
    if socket is not None:
        os.set_inheritable(int(socket), False)  # a child process would keep the port in use
    try:
        store = dist.TCPStore(
            world.address, world.port, world.size, is_master=serve, wait_for_workers=False,
            master_listen_fd=None if socket is None else int(socket),
        )  # fmt: skip
    except dist.DistNetworkError as error:
        if serve and "EADDRINUSE" in str(error):
            raise UserError(
                f"port {world.port} of {world.address} is in use, but the ranks need it for their rendezvous;"
                " set MASTER_PORT to a free port"
            ) from error
        raise
    return dist.PrefixStore(world.start_id, store)


def is_connection_loss(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank is gone, rather than because of an error on this rank."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def gather_objects(item: Any, world: World) -> list[Any]:
    """``item`` of every rank, in rank order, on every rank. Every rank must call."""
    import torch.distributed as dist

    if world.size == 1:
        return [item]
    items: list[Any] = [None] * world.size
    dist.all_gather_object(items, item)
    return items


def run_on_main(world: World, work: Callable[[], None]) -> None:
    """Run ``work`` on the main rank once all ranks have arrived. Every rank must call.

    Raises:
        UserError, Fault: ``work`` failed; raised on every rank, so that no rank is left waiting.
    """
    gather_objects(None, world)
    error = gather_objects(capture_error(work) if world.is_main else None, world)[0]
    if error:
        raise error


def capture_error(work: Callable[[], None]) -> UserError | Fault | None:
    """Run ``work``. Return its error as one line (a full disk, a missing permission, a bad file), or None."""
    from safetensors import SafetensorError

    try:
        work()
    except OSError as error:
        return Fault(f"{error.filename or 'a file'} could not be written: {error.strerror or error}")
    except (UserError, Fault) as error:
        return error
    except (RuntimeError, SafetensorError) as error:
        return Fault(str(error))
    return None
