"""The device of this process: which one, how much memory it has used, deterministic kernels."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

from brain_dist.errors import UserError
from brain_dist.ranks.world import World

if TYPE_CHECKING:
    import torch


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
