"""The rendezvous: the store through which the ranks of one start find each other."""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import Any

from brain_dist.errors import Fault, UserError
from brain_dist.ranks.world import STORE_FD, World, listen

LONGEST_STEP = 600.0  # seconds that start-up, or a first step that compiles the network, may take without progress
SHORTEST_WAIT = 30.0  # seconds that a rank waits at least for the others to start


def serve_store(world: World) -> Any:
    """Start the server of the rendezvous on rank 0; it runs as long as the result exists. None on other ranks.

    Raises:
        UserError: the address or the port cannot be used.
    """
    # under torchrun, its agent runs the server
    if world.rank or world.size == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    import torch.distributed as dist

    try:
        # launch/local.py passes a socket that already listens
        local = world.size == world.local_size
        descriptor = int(os.environ.pop(STORE_FD, "0")) or listen(world.address, world.port, local=local).detach()
    except OSError as error:
        problem = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise UserError(
            f"port {world.port} of {world.address} {problem}, but the ranks need it for their rendezvous;"
            " set MASTER_PORT to a free port"
        ) from error
    os.set_inheritable(descriptor, False)  # a child process would keep the port in use
    return dist.TCPStore(
        world.address, world.port, world.size, is_master=True, wait_for_workers=False, master_listen_fd=descriptor
    )


def connect(world: World, timeout: float) -> Any:
    """Connect to the store of this start: a torch store whose keys have the prefix ``world.start_id``.

    Raises:
        Fault: rank 0, which serves the store, does not answer within ``timeout`` seconds.
    """
    import torch.distributed as dist

    place, deadline = (world.address, world.port), time.monotonic() + timeout
    while True:
        try:
            socket.create_connection(place, timeout=1).close()  # torch would print a stack for each attempt
            store = dist.TCPStore(*place, world.size, is_master=False, wait_for_workers=False)
            return dist.PrefixStore(world.start_id, store)
        except (OSError, dist.DistError) as error:
            if time.monotonic() > deadline:
                raise Fault(
                    f"rank 0 does not answer at {world.address}:{world.port} after {timeout:.0f} s: check that it was"
                    " started and that this machine reaches that address"
                ) from error
        time.sleep(0.1)
