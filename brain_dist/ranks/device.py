"""The device of this process, its peak memory, and deterministic kernels."""

from __future__ import annotations

import os
import platform
import re
import resource
from collections.abc import Sequence
from typing import TYPE_CHECKING

from brain_dist.errors import Fault, UserError
from brain_dist.ranks.world import World

if TYPE_CHECKING:
    import torch

# by PyTorch for the CPU and the GPU, by the libraries of CUDA, NCCL and DALI
_MEMORY_IS_FULL = re.compile(r"out of memory|can't allocate memory|alloc(ation)?[ _]failed", re.IGNORECASE)


def choose_device(world: World, name: str) -> torch.device:
    """The torch device of this process.

    Args:
        world: this process among all processes.
        name: auto (a GPU if there is one), cpu or cuda.

    Raises:
        UserError: ``name`` is cuda and there is no GPU, or the node has more processes than GPUs.
        Fault: the GPU cannot be used, for example because its driver is too old for torch.
    """
    import torch

    count = 0 if name == "cpu" else torch.cuda.device_count()
    if name == "cuda" and not count:
        raise UserError("run.device=cuda, but torch finds no GPU; use run.device=auto or check CUDA_VISIBLE_DEVICES")
    if not count:
        return torch.device("cpu")
    # srun may bind one GPU to each task; each task then sees its GPU as number 0
    if world.local_size > count > 1:
        raise UserError(f"{world.local_size} processes on this node but only {count} GPUs; start one process per GPU")
    device = torch.device("cuda", 0 if count == 1 else world.local_rank)
    try:
        torch.cuda.set_device(device)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise Fault(
            f"GPU {device.index} of {platform.node()} cannot be used: {reason}; see `nvidia-smi` and"
            " `python -m brain_dist.ranks.gpus`, or choose the device cpu"
        ) from error
    return device


def gpu_identity(device: torch.device) -> tuple[str, str]:
    """The name of this node and the UUID of the GPU."""
    import torch

    return platform.node(), str(torch.cuda.get_device_properties(device).uuid)


def refuse_shared_gpus(identities: Sequence[Sequence[str]]) -> None:
    """Refuse two ranks on one GPU, or on slices (MIG) of one GPU, which NCCL does not connect.

    A task that srun binds to its own GPU sees one GPU, and so do several tasks on a node with one GPU; only the GPUs
    themselves tell these cases apart.

    Args:
        identities: what :func:`gpu_identity` returned on each rank.

    Raises:
        UserError: two ranks have the same GPU.
    """
    first: dict[tuple[str, ...], int] = {}
    for rank, identity in enumerate(identities):
        other = first.setdefault(tuple(identity), rank)
        if other != rank:
            raise UserError(
                f"ranks {other} and {rank} on {identity[0]} have the same GPU; start one process per GPU, and give a"
                " run on slices of a GPU (MIG) one slice"
            )


def peak_memory(device: torch.device) -> float:
    """Peak memory of this process in GiB: of tensors on a GPU, the resident set size on the CPU."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux reports KiB


def require_torch(task: str, instead: str) -> None:
    """Check that torch can be imported.

    Args:
        task: what needs it, as the subject of a sentence.
        instead: what the user can do without it.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UserError(f"{task} needs torch, which cannot be imported ({error}); install it, or {instead}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an operation failed because the memory of the device, or of the host, is full."""
    known = isinstance(error, RuntimeError) and _MEMORY_IS_FULL.search(str(error))
    return isinstance(error, MemoryError) or bool(known)


def choose_kernels(*, deterministic: bool) -> None:
    """For training, whose shapes are constant; call before the first computation.

    Otherwise cuDNN times the kernels of each new shape and keeps the fastest. Predictions do without: their batches
    have many sizes, and the same image shall give the same bits again.
    """
    import torch

    if deterministic:
        enable_determinism()
    else:
        torch.backends.cudnn.benchmark = True


def enable_determinism() -> None:
    """Make the same command on the same machines give the same bits; call before the first computation.

    Torch uses deterministic kernels (some are slower) and raises RuntimeError for an operation that has none.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed workspace
    torch.backends.cudnn.benchmark = False  # its choice of kernels depends on timing
    torch.use_deterministic_algorithms(True)
