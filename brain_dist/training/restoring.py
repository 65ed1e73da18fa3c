"""Load a checkpoint into an engine, with any world size and ZeRO stage."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.checkpoints.layout import EMA, MODEL, checkpoint_folder, read_marker
from brain_dist.errors import Fault, UserError
from brain_dist.training.fragments import Fragment, copy_master_weights, local_fragments, restore_optimizer_counters
from brain_dist.training.nonfinite import SkippedSteps

if TYPE_CHECKING:
    import torch

    from brain_dist.training.ema import Ema
    from brain_dist.training.engine import Engine

# (parameter, kind) → first element and readable slice of each saved fragment
Saved = dict[tuple[str, str], list[tuple[int, Any]]]


def restore(root: Path, step: int, engine: Engine) -> None:
    """Load the checkpoint after ``step`` steps into ``engine``. Every rank must call.

    Args:
        root: the run's ``checkpoints`` folder.
        step: number of optimiser steps, which names the checkpoint.
        engine: a new engine; its world size and ZeRO stage may differ from those that saved.

    Raises:
        UserError: ``optim.ema`` is set, but the checkpoint contains no EMA weights.
        Fault: the checkpoint is of another network.
    """
    from safetensors.torch import load_file

    path = checkpoint_folder(root, step)
    counters = read_marker(path)["counters"]
    weights = load_file(path / MODEL)
    persistent = engine.module.state_dict()
    for name, buffer in engine.module.named_buffers():
        if name in persistent:
            if name not in weights:
                raise Fault(f"{path / MODEL} does not contain {name}; it is of another network")
            buffer.copy_(weights[name])
    with ExitStack() as open_files:
        saved = _index_fragments(path, open_files)
        for fragment in local_fragments(engine.deepspeed):
            for kind, tensor in fragment.tensors.items():
                _fill(tensor, fragment, kind, saved)
    restore_optimizer_counters(engine.deepspeed, counters)
    copy_master_weights(engine.deepspeed)
    engine.skipped = SkippedSteps(**counters["skips"])
    if engine.ema:
        _restore_ema(engine.ema, path)


def _restore_ema(ema: Ema, path: Path) -> None:
    from safetensors import safe_open

    file = path / EMA
    if not file.is_file():
        raise UserError(f"optim.ema={ema.decay}, but {path} contains no EMA weights; set optim.ema=0")
    with safe_open(file, framework="pt") as tensors:
        ema.updates = int(tensors.metadata()["updates"])
        for name in tensors.keys():  # noqa: SIM118 - not a mapping
            ema.state[name].copy_(tensors.get_tensor(name))


def _index_fragments(path: Path, open_files: ExitStack) -> Saved:
    """Open the optimiser files of all ranks that saved, and index their fragments. Only headers are read."""
    from safetensors import safe_open

    saved: Saved = defaultdict(list)
    for file_of_rank in sorted(path.glob("optimizer-*.safetensors")):
        file = open_files.enter_context(safe_open(file_of_rank, framework="pt"))
        for key in file.keys():  # noqa: SIM118 - not a mapping
            name, kind, start = key.rsplit(":", 2)
            saved[name, kind].append((int(start), file.get_slice(key)))
    return saved


def _fill(tensor: torch.Tensor, fragment: Fragment, kind: str, saved: Saved) -> None:
    """Copy the saved elements of ``fragment`` into ``tensor``, one of its tensors."""
    start, end, filled = fragment.start, fragment.start + fragment.count, 0
    for saved_start, elements in saved[fragment.name, kind]:
        low, high = max(start, saved_start), min(end, saved_start + elements.get_shape()[0])
        if low < high:
            tensor[low - start : high - start].copy_(elements[low - saved_start : high - saved_start])
            filled += high - low
    if filled != fragment.count:
        raise Fault(
            f"the checkpoint contains {filled} of {fragment.count} elements of {fragment.name} ({kind}); it is of"
            " another network"
        )
