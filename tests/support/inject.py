"""Inject faults into a rank before its entry point runs, or record what the rank does.

A fault is real: at the ``count``-th execution of a place in the code, the process kills or stops itself there.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Due = Callable[[], bool]  # called at each execution of a place; true when the fault must happen
Strike = Callable[[], None]  # causes the fault
FULL_SHM = "full /dev/shm"


def prepare(
    rank: int | None = None,
    place: str | None = None,
    count: int = 0,
    action: str = "SIGKILL",
    record: str | None = None,
    count_places: bool = False,
    late: bool = False,
    waits: str | None = None,
) -> None:
    """Prepare this process for a fault at a place, a record of its batches or waits, or a count of the places.

    Args:
        rank: The rank that is prepared; :class:`fork_server.Ranks` has selected it already.
        place: Key of :data:`PLACES` at which the process sends itself ``action``.
        count: Execution of ``place`` at which this happens, from 1.
        action: Name of the signal, or :data:`FULL_SHM` to fill a /dev/shm that only this process and its children see.
        record: Path prefix of files in which the process records its batches.
        count_places: Print at the end how often each place was executed.
        late: Read the results of each step after the next one, as on a GPU.
        waits: Path of a file in which the process records the calls of each step that would wait for a GPU.
    """
    if place:
        strike_at(place, count, action)
    if record:
        record_batches(record)
    if count_places:
        count_all()
    if late:
        read_late()
    if waits:
        record_waits(Path(waits))


def strike_at(place: str, count: int, action: str) -> None:
    """Do ``action`` at the ``count``-th execution of ``place``."""
    remaining = count
    if action == FULL_SHM:
        mount_own_shm()

    def strike() -> None:
        if action == FULL_SHM:
            fill_disk(Path("/dev/shm"))
        else:
            os.kill(os.getpid(), signal.Signals[action])

    def due() -> bool:
        nonlocal remaining
        remaining -= 1
        return remaining == 0

    PLACES[place](due, strike)


def mount_own_shm() -> None:
    """Give this process and its children a /dev/shm of their own."""
    clone_newns = 0x20000
    assert ctypes.CDLL(None).unshare(clone_newns) == 0
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "shm", "/dev/shm"], check=True)


def fill_disk(folder: Path, *, leave: int = 0) -> Path:
    """Fill the disk of a folder except for ``leave`` bytes; return the file that fills it."""
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    os.truncate(ballast, max(0, ballast.stat().st_size - leave))
    return ballast


def count_all() -> None:
    """Count how often each place is executed, and print the counts at the end."""
    counts = dict.fromkeys(PLACES, 0)

    def due(place: str) -> bool:
        counts[place] += 1
        return False

    for place, watch in PLACES.items():
        watch(partial(due, place), lambda: None)
    atexit.register(lambda: print(f"executions on rank {os.environ['RANK']}: {json.dumps(counts)}", flush=True))


def record_batches(path: str) -> None:
    """Write step, position in the global batch, row, and a checksum of the pixels of each training sample."""
    from brain_dist.training.engine import Engine

    original = Engine.step

    def step(self: Engine, batches: Any, lr: float) -> Any:
        with Path(f"{path}-{self.world.rank}").open("a") as file:
            for batch in batches:
                samples = zip(batch.micro.position.tolist(), batch.row.tolist(), batch.image.numpy(), strict=True)
                for position, row, image in samples:
                    file.write(json.dumps([batch.micro.step, position, row, zlib.crc32(image.tobytes())]) + "\n")
        return original(self, batches, lr)

    Engine.step = step  # type: ignore[method-assign]


def read_late() -> None:
    """Let the ranks' agreement read the results of each step after the next one."""
    from brain_dist.ranks.stopping import StepAgreement

    original = StepAgreement.__init__

    def create(self: StepAgreement, *arguments: Any, **settings: Any) -> None:
        original(self, *arguments, **(settings | {"delay": 1}))

    StepAgreement.__init__ = create  # type: ignore[method-assign]


def record_waits(path: Path) -> None:
    """Write a JSON list for each training step: the function of each call that would wait for a GPU."""
    from waits import record_calls

    from brain_dist.training.loop import Trainer

    original = Trainer.train_step

    def train_step(self: Trainer, step: int) -> None:
        with record_calls() as calls:
            original(self, step)
        with path.open("a") as file:
            file.write(json.dumps(calls) + "\n")

    Trainer.train_step = train_step  # type: ignore[method-assign]


def _step(due: Due, strike: Strike) -> None:
    from brain_dist.training.engine import Engine

    original = Engine.step

    def step(self: Engine, batches: Any, lr: float) -> Any:
        if due():
            strike()
        return original(self, batches, lr)

    Engine.step = step  # type: ignore[method-assign]


def _forward(due: Due, strike: Strike) -> None:
    import torch

    torch.nn.modules.module.register_module_forward_hook(lambda *_: strike() if due() else None)


def _backward(due: Due, strike: Strike) -> None:
    import torch

    torch.nn.modules.module.register_module_full_backward_hook(lambda *_: strike() if due() else None)


def _all_reduce(due: Due, strike: Strike) -> None:
    import torch.distributed as dist

    original = dist.all_reduce

    def all_reduce(tensor: Any, *arguments: Any, **keywords: Any) -> Any:
        if due():
            original(tensor, async_op=True)  # in flight when the process dies
            strike()
        return original(tensor, *arguments, **keywords)

    dist.all_reduce = all_reduce


def _checkpoint_file(due: Due, strike: Strike) -> None:
    from brain_dist.training import saving

    original = saving.write_durably

    def write(path: Path, data: bytes) -> None:
        if due():
            with path.open("wb") as file:
                file.write(data[: len(data) // 2])
                file.flush()
                strike()
        original(path, data)

    saving.write_durably = write


def _checkpoint_marker(due: Due, strike: Strike) -> None:
    from brain_dist.training import saving

    original = saving.write_durably

    def write(path: Path, data: bytes) -> None:
        original(path, data)
        if path.name == saving.MARKER and due():
            strike()  # the marker is written, but the folder is not yet renamed

    saving.write_durably = write


PLACES = {
    "step": _step,
    "forward": _forward,
    "backward": _backward,
    "all-reduce": _all_reduce,
    "checkpoint file": _checkpoint_file,
    "checkpoint marker": _checkpoint_marker,
}
