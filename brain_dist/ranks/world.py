"""The place of this process among all processes of a run.

:func:`discover` is the only reader of the environment of torchrun, the deepspeed launcher and SLURM's srun. The rest of
the package uses the resulting :class:`World`. An incomplete environment is refused: a guess would end in a hang.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brain_dist.errors import UserError

STORE_FD = "BRAIN_DIST_STORE_FD"  # tells rank 0 the number of a socket that listens for the rendezvous
START_ID = "BRAIN_DIST_START_ID"  # tells all ranks World.start_id
SECRET = "BRAIN_DIST_SECRET"  # known to all ranks of a run and to nobody else
_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_TORCH_VARIABLES = (*_RANK_VARIABLES, "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """This process among all processes of a run.

    Attributes:
        rank: number of this process, from 0 to ``size - 1``.
        size: number of processes (the world size).
        local_rank: number of this process on its node.
        local_size: number of processes on this node.
        address: host of the rendezvous store.
        port: port of the rendezvous store.
        launcher: what started this process: torchrun, deepspeed, srun, environment or alone.
        start_id: identifies this start of the run at the rendezvous. A process left over from an earlier start has
            another one, so it cannot join.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    launcher: str
    start_id: str = ""

    @property
    def is_main(self) -> bool:
        """True on the one process that prints, logs and writes shared files."""
        return self.rank == 0


def listen(address: str, port: int, *, local: bool) -> socket.socket:
    """A socket that listens for the rendezvous, at ``address`` only if that is enough for all ranks.

    Args:
        address: name or address of this machine, by which the other ranks know it.
        port: 0 for any free port.
        local: all ranks run on this machine.

    Raises:
        OSError: the port is in use, or the name is unknown.
    """
    places = sorted(socket.getaddrinfo(address, port, type=socket.SOCK_STREAM), key=lambda place: place[0])
    family, *_, (host, *_) = places[0]  # IPv4 if there is one
    # Debian gives a machine's own name the address 127.0.1.1, which other machines cannot reach
    is_name = address not in ("localhost", host)
    if local or not (is_name and ipaddress.ip_address(str(host).split("%")[0]).is_loopback):
        try:
            return socket.create_server((host, port), family=family, backlog=2048)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:  # the address of a router in front of this machine
                raise
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=2048)
    return socket.create_server(("", port), backlog=2048)


def discover(env: Mapping[str, str] | None = None) -> World:
    """Read the place of this process from ``env`` (default: ``os.environ``). Without a launcher, the world has size 1.

    Call it before torch is imported, which reads variables that this function sets.

    Raises:
        UserError: the variables are incomplete or inconsistent, or mpirun started this process.
    """
    # otherwise torch prints its C++ stack when a peer disconnects; that error is reported in one line elsewhere
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # torch's OpenMP (GNU's) reads this when it is loaded: threads sleep at a barrier. On a busy machine, threads that
    # spin there take the core of the one that they wait for
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    env = os.environ if env is None else env
    if any(name in env for name in _RANK_VARIABLES):
        world = _from_torch_variables(env)
    elif "SLURM_STEP_NUM_TASKS" in env:  # set by srun, not in a batch script, which would wait for its peers for ever
        world = _from_srun(env)
    elif env.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        raise UserError("mpirun is not supported; start with torchrun, deepspeed or srun")
    else:
        world = World(0, 1, 0, 1, "127.0.0.1", 0, "alone")
    if not 0 <= world.rank < world.size or not 0 <= world.local_rank < world.local_size:
        raise UserError(
            f"inconsistent rank variables: rank {world.rank} of world size {world.size}, local rank"
            f" {world.local_rank} of local world size {world.local_size}; check the launcher"
        )
    return world


def command_line(argv: Sequence[str] | None = None) -> list[str]:
    """``argv`` (default: ``sys.argv``) without the deepspeed launcher's --local_rank, which the environment has too."""
    arguments = sys.argv[1:] if argv is None else argv
    return [argument for argument in arguments if not argument.startswith(("--local_rank", "--local-rank"))]


def _from_torch_variables(env: Mapping[str, str]) -> World:
    """The world that torchrun, the deepspeed launcher or launch/local.py describes."""
    missing = [name for name in _TORCH_VARIABLES if name not in env]
    if missing:
        present = [name for name in _RANK_VARIABLES if name in env]
        raise UserError(
            f"{', '.join(present)} set but {', '.join(missing)} not; start with torchrun, deepspeed or srun,"
            f" or unset {', '.join(present)}"
        )
    size = _integer(env, "WORLD_SIZE")
    local_size = next((name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if name in env), None)  # torchrun, deepspeed
    launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in env else "deepspeed" if "CROSS_RANK" in env else "environment"
    return World(
        rank=_integer(env, "RANK"),
        size=size,
        local_rank=_integer(env, "LOCAL_RANK"),
        local_size=_integer(env, local_size) if local_size else size,
        address=env["MASTER_ADDR"],
        port=_integer(env, "MASTER_PORT"),
        launcher=launcher,
        start_id=env.get(START_ID) or env.get("TORCHELASTIC_RESTART_COUNT", ""),  # torchrun keeps its store
    )


def _from_srun(env: Mapping[str, str]) -> World:
    """The world of a SLURM step."""
    tasks = _integer(env, "SLURM_STEP_NUM_TASKS")
    job = _integer(env, "SLURM_JOB_ID")
    return World(
        rank=_integer(env, "SLURM_PROCID"),
        size=tasks,
        local_rank=_integer(env, "SLURM_LOCALID"),
        local_size=_tasks_of_node(env, tasks),
        address=env.get("MASTER_ADDR") or ("127.0.0.1" if tasks == 1 else _first_node(env)),
        # the default is below Linux's range of ephemeral ports
        port=_integer(env, "MASTER_PORT") if "MASTER_PORT" in env else 20000 + job % 12000,
        launcher="srun",
        start_id=f"{job}.{env.get('SLURM_STEP_ID', '')}.{env.get('SLURM_RESTART_COUNT', '')}",
    )


def _tasks_of_node(env: Mapping[str, str], tasks: int) -> int:
    """Number of this step's tasks on this node, from a list such as 4(x2),1 for three nodes."""
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", env.get("SLURM_STEP_TASKS_PER_NODE", ""))
    counts = [int(count) for count, nodes in groups for _ in range(int(nodes or 1))] or [tasks]
    node = _integer(env, "SLURM_NODEID") if "SLURM_NODEID" in env else 0
    return counts[node] if node < len(counts) else tasks


def _integer(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError:
        raise UserError(f"environment variable {name}={env[name]!r} is not an integer; check the launcher") from None


def _first_node(env: Mapping[str, str]) -> str:
    """Host name of the first node of the SLURM step."""
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    try:
        result = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise UserError(f"scontrol could not read the node list {nodes!r}; set MASTER_ADDR to the first node") from None
    return result.stdout.split()[0]
