"""The optimiser state of each rank as pieces of named parameters, whatever the ZeRO stage and precision.

DeepSpeed keeps fp32 master weights and Adam's moments in flat tensors whose layout depends on the ZeRO stage, the world
size and the precision. A checkpoint in that layout must be converted before another world size or stage can load it.
DeepSpeed's own conversion does not support stage 0 and unpickles files. So this module maps the flat tensors to
fragments: a :class:`Fragment` is a range of elements of one parameter, and the fragments of any run can fill those of
any other run.

Only this module depends on DeepSpeed's internal tensors (0.19):

* stage 3: ``grad_position``
* stages 1 and 2: ``_hp_mapping``
* stage 0 in bf16 and fp16: pairs of parameter groups, 16-bit and fp32
* stage 0 in fp32 and amp: torch's own optimiser
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brain_dist.errors import UserError

if TYPE_CHECKING:
    import torch

WEIGHT = "weight"  # fp32 master weights
MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's moments, by torch's names
Location = tuple[str, int, int, "torch.Tensor", int]
_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class Fragment:
    """Elements ``start`` to ``start + count`` of parameter ``name``, flattened.

    Attributes:
        tensors: WEIGHT and MOMENTS → float32 [count]; views of the optimiser's memory, so writing changes its state.
    """

    name: str
    start: int
    count: int
    tensors: dict[str, torch.Tensor]


def local_fragments(deepspeed: Any) -> list[Fragment]:
    """The fragments of all trained parameters that this rank updates. Missing moments are created as zeros.

    At stage 0 every rank has all elements. From stage 1 on each element is on one rank only.

    Raises:
        UserError: the optimiser state is on NVMe, from where it can't be saved.
    """
    if getattr(deepspeed.optimizer, "swap_optimizer", False):
        raise UserError("train.deepspeed: optimizer states on NVMe cannot be saved; offload them to the cpu")
    fragments = []
    for name, start, count, flat, offset in master_weights(deepspeed):
        state = deepspeed.basic_optimizer.state[flat]
        if not state:
            state |= _initial_state(flat)
        tensors = {WEIGHT: flat.detach(), **{kind: state[kind] for kind in MOMENTS}}
        views = {kind: tensor.view(-1).narrow(0, offset, count) for kind, tensor in tensors.items()}
        fragments.append(Fragment(name, start, count, views))
    return fragments


def master_weights(deepspeed: Any) -> Iterator[Location]:
    """Where the optimiser keeps the fp32 weights of each parameter, or of the part of it that this rank updates.

    Yields:
        Name of the parameter, its first element and number of elements, the tensor of the optimiser, and the position
        of the first element in that tensor, flattened.
    """
    module, optimizer = deepspeed.module, deepspeed.optimizer
    parameters: list[tuple[str, Any]] = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if hasattr(optimizer, "grad_position"):
        return _locations_stage3(parameters, optimizer)
    if hasattr(optimizer, "update_lp_params"):
        return _locations_stage12(parameters, optimizer)
    if hasattr(optimizer, "fp32_groups"):
        masters = {id(low): high for low, high in _stage0_pairs(optimizer)}
        return ((name, 0, p.numel(), masters[id(p)], 0) for name, p in parameters)
    return ((name, 0, p.numel(), p, 0) for name, p in parameters)


def _locations_stage3(parameters: list[tuple[str, Any]], optimizer: Any) -> Iterator[Location]:
    """Every parameter is divided into equal parts, one per rank; the last part is padded."""
    for name, parameter in parameters:
        group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = size * optimizer._get_param_partition_rank(parameter)
        count = min(size, parameter.ds_numel - start)
        if count > 0:
            yield (name, start, count, optimizer.fp32_partitioned_groups_flat[group], offset)


def _locations_stage12(parameters: list[tuple[str, Any]], optimizer: Any) -> Iterator[Location]:
    """The parameters of a group are concatenated, and the result is divided among the ranks."""
    flats = getattr(optimizer, "single_partition_of_fp32_groups", None)
    flats = optimizer.fp32_groups_flat_partition if flats is None else flats
    for name, parameter in parameters:
        mapping = parameter._hp_mapping
        if mapping is not None:
            master, part = mapping.hp_fragment_address, mapping.lp_fragment_address
            yield (name, part.start, part.numel, flats[mapping.param_group_index], master.start)


def _stage0_pairs(optimizer: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each 16-bit parameter with its fp32 master weights."""
    for lows, highs in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        yield from zip(lows, highs, strict=True)


def _initial_state(flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """Adam's state before the first step, which torch creates only in that step (fused: the counter on the device)."""
    import torch

    step = torch.zeros((), dtype=torch.float32, device=flat.device)
    return {"step": step, **{kind: torch.zeros_like(flat, requires_grad=False) for kind in MOMENTS}}


def copy_master_weights(deepspeed: Any) -> None:
    """Copy the fp32 master weights into the weights that compute, after fragments were filled. Every rank must call."""
    optimizer = deepspeed.optimizer
    if hasattr(optimizer, "grad_position"):
        unsharded = optimizer.persistent_parameters  # small parameters that stay complete on every rank
        if unsharded:
            unsharded[0].partition(unsharded)
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if unsharded:
            unsharded[0].all_gather(unsharded)
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp32_groups"):
        for low, high in _stage0_pairs(optimizer):
            low.data.copy_(high.data)


def undo_initial_step(deepspeed: Any) -> None:
    """Undo the step without gradients that DeepSpeed takes to allocate the optimiser's state, at stage 0 in 16 bits.

    It would count in Adam's correction of its moments, so that the first real update would be a quarter too small.
    """
    if hasattr(deepspeed.optimizer, "fp32_groups"):
        deepspeed.basic_optimizer.state.clear()
        for low, high in _stage0_pairs(deepspeed.optimizer):
            high.data.copy_(low.data)  # without the step's weight decay


def gradient_tensors(deepspeed: Any) -> list[torch.Tensor]:
    """All gradients on this rank (any shape [...]), between a step's last backward pass and the optimiser update."""
    optimizer = deepspeed.optimizer
    tensors = [t for p in deepspeed.module.parameters() for t in (p.grad, getattr(p, "grad_accum", None))]
    tensors.append(getattr(optimizer, "grad_partitions_flat_buffer", None))  # stage 3
    for group in getattr(optimizer, "averaged_gradients", {}).values():  # stages 1 and 2; views of the above at stage 3
        tensors.extend(group or [])
    return [tensor for tensor in tensors if tensor is not None]


def bucket_tensors(deepspeed: Any) -> list[torch.Tensor]:
    """The flat buffers [N] that gradients are collected in for communication, if they outlive a step (stage 3)."""
    buffers = [getattr(bucket, "buffer", None) for bucket in getattr(deepspeed.optimizer, "ipg_buckets", {}).values()]
    flattened = [t for buffer in buffers for t in (buffer if isinstance(buffer, list) else [buffer])]
    return [tensor for tensor in flattened if tensor is not None]


def optimizer_counters(deepspeed: Any) -> dict[str, Any]:
    """Adam's number of steps, and the state of the loss scale in fp16."""
    states = deepspeed.basic_optimizer.state.values()
    steps = max((int(state["step"]) for state in states if "step" in state), default=0)
    loss_scale = {name: value for name, value in _scaler_state(deepspeed).items() if name in _SCALER_FIELDS}
    return {"optimizer_steps": steps, "loss_scale": loss_scale}


def restore_optimizer_counters(deepspeed: Any, counters: dict[str, Any]) -> None:
    """Set what :func:`optimizer_counters` returned. Call :func:`local_fragments` first: it creates the state."""
    for state in deepspeed.basic_optimizer.state.values():
        state["step"].fill_(counters["optimizer_steps"])
    loss_scale = counters["loss_scale"]
    _scaler_state(deepspeed).update({name: value for name, value in loss_scale.items() if name in _SCALER_FIELDS})


def _scaler_state(deepspeed: Any) -> dict[str, Any]:
    """The attributes (writable) of the object that holds the loss scale of fp16; empty in other precisions."""
    optimizer = deepspeed.optimizer
    scaler = getattr(optimizer, "loss_scale_config", None) or getattr(optimizer, "loss_scaler", None)
    return vars(scaler) if scaler is not None and deepspeed.fp16_enabled() else {}
