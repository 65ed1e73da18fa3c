"""Put an engine back to where a checkpoint left it, on any number of ranks and any ZeRO stage."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.checkpoints.layout import EMA, MODEL, checkpoint_folder, read_marker
from brain_dist.errors import Fault, UserError
from brain_dist.training.nonfinite import Skips

if TYPE_CHECKING:
    import torch

    from brain_dist.training.engine import Engine


def restore(root: Path, step: int, engine: Engine) -> dict[str, Any]:
    """Put the engine where it was after ``step`` steps, whatever the ranks and stage that saved; every rank must call.

    Returns what :func:`read_marker` gives. UserError where the average that ``optim.ema`` asks for was not saved.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    from brain_dist.training.fragments import copy_master_weights, local_fragments, set_counters

    path = checkpoint_folder(root, step)
    marker = read_marker(path)
    saved = load_file(path / MODEL)
    for name, value in engine.module.named_buffers():
        value.copy_(saved[name])
    with FragmentReader(path) as reader:
        for fragment in local_fragments(engine.deepspeed):
            for kind, here in fragment.tensors.items():
                reader.fill(here, fragment.name, kind, fragment.start)
    set_counters(engine.deepspeed, marker["counters"])
    copy_master_weights(engine.deepspeed)
    engine.skips = Skips(**marker["counters"]["skips"])
    if engine.ema:
        file = path / EMA
        if not file.is_file():
            raise UserError(f"optim.ema={engine.ema.decay}, but {path} was saved without an average; set optim.ema=0")
        with safe_open(file, framework="pt") as opened:
            engine.ema.updates = int(opened.metadata()["updates"])
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                engine.ema.state[name].copy_(opened.get_tensor(name))
    return marker


class FragmentReader:
    """Elements of any parameter out of the optimiser files of all ranks that saved."""

    def __init__(self, path: Path) -> None:
        """Open every optimiser file of the checkpoint in ``path``; only headers are read."""
        from safetensors import safe_open

        self.files = [safe_open(file, framework="pt") for file in sorted(path.glob("optimizer-*.safetensors"))]
        self.pieces: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = defaultdict(list)
        for opened in self.files:
            opened.__enter__()
            for key in opened.keys():  # noqa: SIM118 - not a mapping
                name, kind, start = key.rsplit(":", 2)
                (count,) = opened.get_slice(key).get_shape()
                self.pieces[name, kind].append((int(start), count, opened, key))

    def __enter__(self) -> FragmentReader:
        return self

    def __exit__(self, *error: Any) -> None:
        for opened in self.files:
            opened.__exit__(*error)

    def fill(self, here: torch.Tensor, name: str, kind: str, start: int) -> None:
        """Fill ``here`` (flat) with the elements from ``start`` on; Fault where the checkpoint lacks some of them."""
        end, filled = start + len(here), 0
        for at, count, opened, key in self.pieces[name, kind]:
            low, high = max(start, at), min(end, at + count)
            if low < high:
                here[low - start : high - start].copy_(opened.get_slice(key)[low - at : high - at])
                filled += high - low
        if filled != len(here):
            raise Fault(f"the checkpoint holds {filled} of {len(here)} elements of {name} ({kind}): another network's?")
