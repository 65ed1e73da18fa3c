"""Who this process is among all processes of a run.

One place reads the environment of torchrun, the deepspeed launcher or SLURM's srun, or finds none and is alone.
Everything else asks the resulting :class:`World`. A half-set environment is refused: guessing the rest ends in a hang.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brain_dist.errors import UserError

if TYPE_CHECKING:
    import torch

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


def choose_device(world: World, wanted: str) -> torch.device:
    """The torch device of this process; ``wanted`` is auto, cpu or cuda."""
    import torch

    count = 0 if wanted == "cpu" else torch.cuda.device_count()
    if wanted == "cuda" and not count:
        raise UserError(
            "run.device=cuda, but torch sees no GPU here; use run.device=auto or check CUDA_VISIBLE_DEVICES"
        )
    if not count:
        return torch.device("cpu")
    # srun may bind one GPU to each task, and then every task sees its own as number 0
    if world.local_size > count > 1:
        raise UserError(f"{world.local_size} processes on this node but only {count} GPUs; start one process a GPU")
    device = torch.device("cuda", 0 if count == 1 else world.local_rank)
    torch.cuda.set_device(device)
    return device


def peak_memory(device: torch.device) -> float:
    """Most memory that this process has held: of tensors on the GPU, of all kinds on the CPU [GiB]."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts it in KiB


def be_deterministic() -> None:
    """Ask for the same bits from the same command on the same machines; call before anything is computed.

    Torch takes its deterministic kernels, some of them slower, and raises where an operation has none. cuBLAS needs
    its workspace fixed, and cuDNN may not choose kernels by timing them.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


@contextlib.contextmanager
def process_group(world: World, device: torch.device, timeout: float = 600.0) -> Iterator[None]:
    """torch.distributed for the length of a block, also for a world of one (DeepSpeed wants a group).

    ``timeout``: seconds that training gives a rank without progress; collectives give up later than that, so that
    :mod:`brain_dist.watch` can name the rank first.
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
