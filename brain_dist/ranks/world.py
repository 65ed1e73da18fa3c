"""Who this process is among all processes of a run.

One place reads the environment of torchrun, the deepspeed launcher or SLURM's srun, or finds none and is alone.
Everything else asks the resulting :class:`World`. A half-set environment is refused: guessing the rest ends in a hang.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brain_dist.errors import UserError

if TYPE_CHECKING:
    pass


_TORCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """rank of size processes, local_rank of local_size on this node; address and port of the rendezvous.

    ``meeting`` names this start of the run there: a rank that another start left behind meets nobody.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    launcher: str
    meeting: str = ""

    @property
    def is_main(self) -> bool:
        """True on the one process that prints, logs and writes shared files."""
        return self.rank == 0


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError:
        raise UserError(f"environment variable {name}={env[name]!r} is not a whole number") from None


def _slurm_address(env: Mapping[str, str]) -> str:
    """Address of the first node of the step."""
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    try:
        found = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise UserError(f"scontrol could not read the node list {nodes!r}; export MASTER_ADDR=<first node>") from None
    return found.stdout.split()[0]


def discover(env: Mapping[str, str] | None = None) -> World:
    """Read the environment; UserError where it is only half set or contradicts itself."""
    # torch prints pages of its own stack when a peer is gone; what happened is said in a line elsewhere
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    env = os.environ if env is None else env
    ranked = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in env]
    if ranked:
        missing = [name for name in _TORCH_VARIABLES if name not in env]
        if missing:
            raise UserError(
                f"{', '.join(ranked)} set but {', '.join(missing)} not: start with torchrun, deepspeed or srun,"
                " or unset them"
            )
        size = _number(env, "WORLD_SIZE")
        world = World(
            rank=_number(env, "RANK"),
            size=size,
            local_rank=_number(env, "LOCAL_RANK"),
            # torchrun's name, then the deepspeed launcher's
            local_size=next((_number(env, name) for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if name in env), size),
            address=env["MASTER_ADDR"],
            port=_number(env, "MASTER_PORT"),
            launcher="torchrun"
            if "TORCHELASTIC_RUN_ID" in env
            else "deepspeed"
            if "CROSS_RANK" in env
            else "environment",
            meeting=env.get("BRAIN_DIST_MEETING", ""),  # torchrun makes a new place for each start
        )
    elif (
        "SLURM_STEP_NUM_TASKS" in env
    ):  # set inside srun only, not in the batch shell, where waiting for peers would hang
        tasks = _number(env, "SLURM_STEP_NUM_TASKS")
        nodes = _number(env, "SLURM_STEP_NUM_NODES") if "SLURM_STEP_NUM_NODES" in env else 1
        job = _number(env, "SLURM_JOB_ID")
        world = World(
            rank=_number(env, "SLURM_PROCID"),
            size=tasks,
            local_rank=_number(env, "SLURM_LOCALID"),
            local_size=-(-tasks // nodes),
            address=env.get("MASTER_ADDR") or ("127.0.0.1" if tasks == 1 else _slurm_address(env)),
            port=_number(env, "MASTER_PORT")
            if "MASTER_PORT" in env
            else 20000 + job % 12000,  # below those that Linux gives away
            launcher="srun",
            meeting=f"{job}.{env.get('SLURM_STEP_ID', '')}.{env.get('SLURM_RESTART_COUNT', '')}",
        )
    elif env.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        raise UserError("mpirun's variables are not read; start with torchrun, deepspeed or srun")
    else:
        world = World(0, 1, 0, 1, "127.0.0.1", 0, "alone")
    if not 0 <= world.rank < world.size or not 0 <= world.local_rank < world.local_size:
        raise UserError(
            f"rank {world.rank} of {world.size} (local {world.local_rank} of {world.local_size}) cannot be;"
            " check the launcher"
        )
    return world
