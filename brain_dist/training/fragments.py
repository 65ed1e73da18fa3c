"""What each rank holds of the optimiser's state, as pieces of named parameters, whatever the ZeRO stage and precision.

DeepSpeed keeps fp32 weights and Adam's moments in flat tensors that depend on the stage, the number of ranks and the
precision. A checkpoint in that layout needs a conversion before other ranks or another stage can read it, DeepSpeed's
own conversion knows no stage 0, and reading it runs what a pickle says. So the layout is undone here, where the state
lies: a :class:`Fragment` is a run of elements of one parameter. Fragments of any run can fill those of any other.

This is the one module that knows DeepSpeed's tensors (0.19: ``_hp_mapping`` at stages 1 and 2, ``grad_position`` at
stage 3, pairs of groups at stage 0 in 16 bits, torch's own optimiser at stage 0 in fp32).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brain_dist.errors import UserError

if TYPE_CHECKING:
    import torch

WEIGHT = "weight"  # the fp32 weights
MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's two averages, by torch's names
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class Fragment:
    """Elements ``start`` to ``start + count`` of parameter ``name``, flattened.

    ``tensors``: WEIGHT and MOMENTS → float32 [count]; views of the optimiser's own memory, which may be written to.
    """

    name: str
    start: int
    count: int
    tensors: dict[str, torch.Tensor]


def local_fragments(deepspeed: Any) -> list[Fragment]:
    """The fragments that this rank updates, of every parameter that is trained; moments are made where there are none.

    At stage 0 every rank holds everything; from stage 1 on no two ranks hold the same element. UserError where the
    state lies on a disk (NVMe offload), which no checkpoint can take from here.
    """
    optimizer, base = deepspeed.optimizer, deepspeed.basic_optimizer
    if getattr(optimizer, "swap_optimizer", False):
        raise UserError("train.deepspeed: optimizer states on NVMe cannot be saved; offload them to the cpu")
    found = []
    for name, start, count, flat, offset in _places(deepspeed.module, optimizer):
        state = base.state[flat]
        if not state:
            state |= _fresh(flat)
        tensors = {WEIGHT: flat.detach(), **{kind: state[kind] for kind in MOMENTS}}
        views = {kind: value.view(-1).narrow(0, offset, count) for kind, value in tensors.items()}
        found.append(Fragment(name, start, count, views))
    return found


def _places(module: torch.nn.Module, optimizer: Any) -> Iterator[tuple[str, int, int, torch.Tensor, int]]:
    """(parameter, its first element held here, how many, the optimiser's tensor with them, their offset in that)."""
    named: list[tuple[str, Any]] = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if hasattr(optimizer, "grad_position"):  # stage 3: every parameter is cut into equal parts, the last one padded
        for name, parameter in named:
            group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = size * optimizer._get_param_partition_rank(parameter)
            count = min(size, parameter.ds_numel - start)
            if count > 0:
                yield name, start, count, optimizer.fp32_partitioned_groups_flat[group], offset
    elif hasattr(optimizer, "update_lp_params"):  # stages 1 and 2: groups laid end to end and cut at the ranks' bounds
        flats = getattr(optimizer, "single_partition_of_fp32_groups", None)
        flats = optimizer.fp32_groups_flat_partition if flats is None else flats
        for name, parameter in named:
            here = parameter._hp_mapping
            if here is not None:
                at, part = here.hp_fragment_address, here.lp_fragment_address
                yield name, part.start, part.numel, flats[here.param_group_index], at.start
    elif hasattr(optimizer, "fp32_groups"):  # stage 0 in 16 bits: a whole fp32 copy beside each weight
        pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        masters = {id(low): high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}
        for name, parameter in named:
            yield name, 0, parameter.numel(), masters[id(parameter)], 0
    else:
        for name, parameter in named:
            yield name, 0, parameter.numel(), parameter, 0


def _fresh(flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """Adam's state before its first step, which torch makes at that step only (fused: the counter on the device)."""
    import torch

    step = torch.zeros((), dtype=torch.float32, device=flat.device)
    return {"step": step, **{kind: torch.zeros_like(flat, requires_grad=False) for kind in MOMENTS}}


def copy_master_weights(deepspeed: Any) -> None:
    """Make the weights that compute equal to the fp32 ones, after fragments were filled; every rank must call."""
    optimizer = deepspeed.optimizer
    if hasattr(optimizer, "grad_position"):
        whole = optimizer.persistent_parameters  # small ones that stay whole on every rank, and are gathered anew
        if whole:
            whole[0].partition(whole)
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if whole:
            whole[0].all_gather(whole)
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp32_groups"):
        for lows, highs in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for low, high in zip(lows, highs, strict=True):
                low.data.copy_(high.data)


def gradients(deepspeed: Any) -> list[torch.Tensor]:
    """Every gradient that this rank holds between the last backward pass of a step and the optimiser's part of it."""
    optimizer = deepspeed.optimizer
    found = [t for p in deepspeed.module.parameters() for t in (p.grad, getattr(p, "grad_accum", None))]
    found.append(getattr(optimizer, "grad_partitions_flat_buffer", None))  # stage 3
    for group in getattr(optimizer, "averaged_gradients", {}).values():  # stages 1 and 2; at 3 views of the above
        found.extend(group or [])
    return [tensor for tensor in found if tensor is not None]


def buckets(deepspeed: Any) -> list[torch.Tensor]:
    """What gradients are copied into to be sent together, where DeepSpeed keeps it between the steps (stage 3)."""
    made = getattr(deepspeed.optimizer, "ipg_buckets", {}).values()
    found = [getattr(bucket, "buffer", None) for bucket in made]
    return [t for each in found for t in (each if isinstance(each, list) else [each]) if t is not None]


def counters(deepspeed: Any) -> dict[str, Any]:
    """Numbers beside the fragments: Adam's steps taken, and the loss scale's state in fp16."""
    states = deepspeed.basic_optimizer.state.values()
    steps = max((int(state["step"]) for state in states if "step" in state), default=0)
    return {"optimizer_steps": steps, "loss_scale": {k: v for k, v in _scaler(deepspeed).items() if k in _SCALER}}


def set_counters(deepspeed: Any, saved: dict[str, Any]) -> None:
    """Undo of :func:`counters`; after :func:`held`, which makes what is set here."""
    for state in deepspeed.basic_optimizer.state.values():
        state["step"].fill_(saved["optimizer_steps"])
    _scaler(deepspeed).update({k: v for k, v in saved["loss_scale"].items() if k in _SCALER})


def _scaler(deepspeed: Any) -> dict[str, Any]:
    """The attributes of whatever object holds fp16's loss scale; empty where there is none."""
    optimizer = deepspeed.optimizer
    found = getattr(optimizer, "loss_scale_config", None) or getattr(optimizer, "loss_scaler", None)
    return vars(found) if found is not None and deepspeed.fp16_enabled() else {}
