"""Load a checkpoint into an engine, with any world size and ZeRO stage."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from brain_dist.checkpoints.layout import EMA, MODEL, checkpoint_folder, read_marker
from brain_dist.errors import Fault, UserError
from brain_dist.training.nonfinite import SkippedSteps

if TYPE_CHECKING:
    import torch

    from brain_dist.training.ema import Ema
    from brain_dist.training.engine import Engine


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

    from brain_dist.training.fragments import copy_master_weights, local_fragments, restore_optimizer_counters

    path = checkpoint_folder(root, step)
    counters = read_marker(path)["counters"]
    weights = load_file(path / MODEL)
    for name, buffer in engine.module.named_buffers():
        buffer.copy_(weights[name])
    with FragmentReader(path) as reader:
        for fragment in local_fragments(engine.deepspeed):
            for kind, tensor in fragment.tensors.items():
                reader.fill(tensor, fragment.name, kind, fragment.start)
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


class FragmentReader:
    """Reads elements of any parameter from the optimiser files of all ranks that saved."""

    def __init__(self, path: Path) -> None:
        """Open all optimiser files of the checkpoint folder ``path``; only their headers are read."""
        from safetensors import safe_open

        self._files = ExitStack()
        self._saved: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = defaultdict(list)
        for path_of_rank in sorted(path.glob("optimizer-*.safetensors")):
            file = self._files.enter_context(safe_open(path_of_rank, framework="pt"))
            for key in file.keys():  # noqa: SIM118 - not a mapping
                name, kind, start = key.rsplit(":", 2)
                (count,) = file.get_slice(key).get_shape()
                self._saved[name, kind].append((int(start), count, file, key))

    def __enter__(self) -> FragmentReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def fill(self, tensor: torch.Tensor, name: str, kind: str, start: int) -> None:
        """Copy the elements of parameter ``name`` from ``start`` on into ``tensor``, float32 [count].

        Raises:
            Fault: the checkpoint does not contain all of them.
        """
        end, filled = start + len(tensor), 0
        for saved_start, count, file, key in self._saved[name, kind]:
            low, high = max(start, saved_start), min(end, saved_start + count)
            if low < high:
                tensor[low - start : high - start].copy_(file.get_slice(key)[low - saved_start : high - saved_start])
                filled += high - low
        if filled != len(tensor):
            raise Fault(
                f"the checkpoint contains {filled} of {len(tensor)} elements of {name} ({kind}); another network"
                " saved it"
            )
