"""Which device a process takes, and its errors. Stand-ins for torch's count of GPUs, as this machine may have none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist

from brain_dist.errors import Fault, UserError
from brain_dist.ranks.device import choose_device, choose_kernels, is_out_of_memory, refuse_shared_gpus
from brain_dist.ranks.world import discover


def see_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> list[torch.device]:
    """Let torch find ``count`` GPUs; returns the devices that it is told to use."""
    used: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    return used


def srun(local_rank: int, tasks: int) -> dict[str, str]:
    """Variables of a task of srun on one of two nodes."""
    return {
        **{"SLURM_PROCID": str(tasks + local_rank), "SLURM_NTASKS": str(2 * tasks), "SLURM_LOCALID": str(local_rank)},
        **{"SLURM_STEP_NUM_TASKS": str(2 * tasks), "SLURM_STEP_TASKS_PER_NODE": f"{tasks}(x2)", "SLURM_JOB_ID": "7"},
        **{"SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "n[1-2]", "MASTER_ADDR": "n1"},
    }


def torchrun(local_rank: int, processes: int) -> dict[str, str]:
    """Variables of a process of torchrun on one node."""
    numbers = {"RANK": local_rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return {**{name: str(number) for name, number in numbers.items()}, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("variables", "visible", "expected"),
    [
        (srun(3, tasks=4), 4, 3),  # no binding: each task sees all GPUs
        (srun(3, tasks=4), 1, 0),  # --gpu-bind=single:1, --gpus-per-task=1: each task sees its own as number 0
        (torchrun(1, processes=2), 8, 1),  # fewer processes than GPUs
        (torchrun(1, processes=2), 2, 1),  # CUDA_VISIBLE_DEVICES=5,7
        ({}, 4, 0),
        ({}, 1, 0),  # CUDA_VISIBLE_DEVICES=5, or one slice of a GPU (MIG)
    ],
)
def test_a_process_takes_its_gpu_or_the_one_of_its_local_rank(
    variables: dict[str, str], visible: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = see_gpus(monkeypatch, visible)
    device = torch.device("cuda", expected)
    assert choose_device(discover(variables), "auto") == choose_device(discover(variables), "cuda") == device
    assert used == [device, device]
    assert choose_device(discover(variables), "cpu") == torch.device("cpu")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 2)
    with pytest.raises(UserError, match="4 processes on this node but only 2 GPUs; start one process per GPU"):
        choose_device(discover(torchrun(0, processes=4)), "auto")


def test_without_a_gpu_the_cpu_is_taken_unless_a_gpu_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 0)
    assert choose_device(discover({}), "auto") == torch.device("cpu")
    with pytest.raises(UserError, match=r"torch finds no GPU; use run\.device=auto or check CUDA_VISIBLE_DEVICES"):
        choose_device(discover({}), "cuda")


def test_a_gpu_that_cannot_be_used_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a driver that is too old for torch: NVML counts the GPUs, CUDA refuses them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 99)
    with pytest.raises(Fault, match=r"^GPU 98 of \S+ cannot be used: .+; see `nvidia-smi`") as caught:
        choose_device(discover(torchrun(98, processes=99)), "auto")
    assert "\n" not in str(caught.value)


def test_only_training_lets_cudnn_time_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 1)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    choose_device(discover({}), "auto")
    assert not torch.backends.cudnn.benchmark
    choose_kernels(deterministic=False)
    assert torch.backends.cudnn.benchmark


def test_errors_about_full_memory_are_known_by_their_texts() -> None:
    errors: list[BaseException] = [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError(
            "Critical error in pipeline:\nError in MIXED operator `decoders.image_slice`\nCUDA allocation failed"
        ),
        dist.DistBackendError("NCCL error, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"),
    ]
    for allocate in (lambda: torch.empty(2**55), lambda: np.empty(2**55)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        errors.append(caught.value)
    for error in errors:
        assert is_out_of_memory(error), error
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not is_out_of_memory(caught.value)


def test_two_ranks_on_one_gpu_are_refused() -> None:
    refuse_shared_gpus([["n1", "a"], ["n1", "b"], ["n2", "a"]])
    with pytest.raises(UserError, match="ranks 1 and 3 on n1 have the same GPU; start one process per GPU"):
        refuse_shared_gpus([["n1", "a"], ["n1", "b"], ["n2", "b"], ["n1", "b"]])
