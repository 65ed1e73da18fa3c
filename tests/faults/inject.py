"""What is prepared inside a rank before its entry point runs: faults that strike at a certain place, and records.

A fault waits for the ``count``-th time that the place is passed, and then really happens: the process kills or stops
itself in the middle of it.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


def prepare(
    rank: int | None = None,
    place: str | None = None,
    count: int = 0,
    action: str = "SIGKILL",
    record: str | None = None,
) -> None:
    """Arrange in this process what a test asks for.

    ``place`` and ``count``: it gets ``action`` at the ``count``-th passing of ``place``; ``record``: it writes down its
    batches; neither: it counts how often each place is passed, and prints that at the end. ``rank`` chose the process.
    """
    if record:
        record_batches(record)
    elif place:
        strike_at(place, count, action)
    else:
        count_all()


def strike_at(place: str, count: int, action: str) -> None:
    """Get a signal at the ``count``-th passing of ``place``."""
    left = count

    def strike() -> None:
        os.kill(os.getpid(), signal.Signals[action])

    def due() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    PLACES[place](due, strike)


def count_all() -> None:
    """Count how often each place is passed, and print that at the end."""
    passed = dict.fromkeys(PLACES, 0)

    def due(place: str) -> bool:
        passed[place] += 1
        return False

    for place, watch in PLACES.items():
        watch(partial(due, place), lambda: None)
    atexit.register(lambda: print("\n".join(f"passed {place}: {n}" for place, n in passed.items()), flush=True))


def record_batches(path: str) -> None:
    """Write down what each step is fed: step, place in the global batch, row, and a checksum of the pixels."""
    from brain_dist.training.engine import Engine

    real = Engine.step

    def step(self: Engine, batches: Any, lr: float) -> Any:
        with Path(f"{path}-{self.world.rank}").open("a") as opened:
            for batch in batches:
                places = zip(batch.micro.position.tolist(), batch.row.tolist(), batch.image.numpy(), strict=True)
                for position, row, image in places:
                    opened.write(json.dumps([batch.micro.step, position, row, zlib.crc32(image.tobytes())]) + "\n")
        return real(self, batches, lr)

    Engine.step = step  # type: ignore[method-assign]


def _step(due: Callable[[], bool], strike: Callable[[], None]) -> None:
    from brain_dist.training.engine import Engine

    real = Engine.step

    def step(self: Engine, batches: Any, lr: float) -> Any:
        if due():
            strike()
        return real(self, batches, lr)

    Engine.step = step  # type: ignore[method-assign]


def _forward(due: Callable[[], bool], strike: Callable[[], None]) -> None:
    import torch

    torch.nn.modules.module.register_module_forward_hook(lambda *_: strike() if due() else None)


def _backward(due: Callable[[], bool], strike: Callable[[], None]) -> None:
    import torch

    torch.nn.modules.module.register_module_full_backward_hook(lambda *_: strike() if due() else None)


def _all_reduce(due: Callable[[], bool], strike: Callable[[], None]) -> None:
    import torch.distributed as dist

    real = dist.all_reduce

    def all_reduce(tensor: Any, *arguments: Any, **named: Any) -> Any:
        if due():
            real(tensor, async_op=True)  # on its way when the process dies
            strike()
        return real(tensor, *arguments, **named)

    dist.all_reduce = all_reduce


def _write(due: Callable[[], bool], strike: Callable[[], None]) -> None:
    from brain_dist.training import saving

    real = saving._write_synced

    def write(path: Path, data: bytes) -> None:
        if due():
            with path.open("wb") as opened:
                opened.write(data[: len(data) // 2])
                opened.flush()
                strike()
        real(path, data)

    saving._write_synced = write


def _complete(due: Callable[[], bool], strike: Callable[[], None]) -> None:
    from brain_dist.training import saving

    real = saving._write_synced

    def write(path: Path, data: bytes) -> None:
        real(path, data)
        if path.name == saving.MARKER and due():
            strike()  # the marker is there, the folder not yet renamed

    saving._write_synced = write


PLACES = {
    "step": _step,
    "forward": _forward,
    "backward": _backward,
    "all-reduce": _all_reduce,
    "checkpoint file": _write,
    "checkpoint marker": _complete,
}
