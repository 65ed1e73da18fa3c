"""Memory of one rank, by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from brain_dist.profiling.stopwatch import replaced

if TYPE_CHECKING:
    from brain_dist.training.engine import Engine


def measure_memory(engine: Engine) -> dict[str, int]:
    """Bytes on this rank between two steps, when there are no gradients (see :func:`measure_gradients`).

    Returns:
        weights; optimiser: its states and master weights.
    """
    optimizer = getattr(engine.deepspeed.optimizer, "optimizer", engine.deepspeed.optimizer)
    states = [value for state in optimizer.state.values() for value in state.values()]
    masters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    masters += getattr(engine.deepspeed.optimizer, "fp32_partitioned_groups_flat", [])  # stage 3
    # ds_tensor: at stage 3, this rank's part of a parameter; small parameters stay whole
    weights = [
        t for parameter in engine.module.parameters() for t in (parameter, getattr(parameter, "ds_tensor", parameter))
    ]
    addresses = {tensor.untyped_storage().data_ptr() for tensor in weights}
    masters = [tensor for tensor in masters if tensor.untyped_storage().data_ptr() not in addresses]
    return {"weights": _storage_bytes(weights), "optimiser": _storage_bytes([*states, *masters])}


def measure_gradients(engine: Engine, take_step: Callable[[], None]) -> tuple[int, int]:
    """Take one step, and measure between its last backward pass and the optimiser.

    Returns:
        Bytes of all gradients on this rank, and of the buffers that they are copied into for communication.
    """
    from brain_dist.training.fragments import bucket_tensors, gradient_tensors

    optimizer_step = engine.deepspeed.step
    gradients = buckets = 0

    def measuring_step(*arguments: Any, **options: Any) -> Any:
        nonlocal gradients, buckets
        if engine.deepspeed.is_gradient_accumulation_boundary():
            gradients = _storage_bytes(gradient_tensors(engine.deepspeed))
            buckets = _storage_bytes(bucket_tensors(engine.deepspeed))
        return optimizer_step(*arguments, **options)

    with replaced(engine.deepspeed, "step", measuring_step):
        take_step()
    return gradients, buckets


def _storage_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of the memory behind tensors. Shared memory counts once; a view counts as all of its memory."""
    import torch

    storages = [tensor.untyped_storage() for tensor in tensors if torch.is_tensor(tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
