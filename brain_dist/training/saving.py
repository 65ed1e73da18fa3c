"""Writing checkpoints beside the training: a copy at the step, the disk in a thread, complete at a later step.

Every rank copies what it holds to the host and hands it to a thread; training goes on. Each rank's thread writes and
syncs its own files into ``.partial-<step>``. When the ranks have agreed that all of them are done (the agreement rides
on the reduction that every step makes anyway), the main rank writes the marker and renames the folder. Whatever dies
before that leaves the previous checkpoint as it was.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from brain_dist.checkpoints.layout import (
    EMA,
    MARKER,
    MODEL,
    checkpoint_folder,
    complete_steps,
    fragment_key,
    marker_text,
    optimizer_file,
)
from brain_dist.common.files import sync_folder
from brain_dist.errors import Fault
from brain_dist.ranks.agreement import capture_error, run_on_main
from brain_dist.ranks.group import gather_objects
from brain_dist.training.fragments import local_fragments

if TYPE_CHECKING:
    import torch

    from brain_dist.training.engine import Engine

_PARTIAL = ".partial-"
Tensors = dict[str, "torch.Tensor"]
Files = dict[str, tuple[Tensors, dict[str, str] | None]]  # name → tensors on the host, metadata


@dataclass
class _Writing:
    """A checkpoint on its way to the disk; ``listing`` and ``problem`` are the thread's answer."""

    step: int
    counters: dict[str, Any]
    partial: Path
    thread: Thread
    listing: dict[str, dict[str, Any]]
    problem: Exception | None


class Saver:
    """Takes checkpoints of one engine, one at a time; every rank must make the same calls in the same order."""

    def __init__(self, root: Path, engine: Engine, facts: dict[str, Any], *, keep: int) -> None:
        """``root``: the run's ``checkpoints`` folder, shared by all ranks; ``facts``: what a resume must agree with.

        What a process that died while saving left behind is removed.
        """
        self.root, self.engine, self.facts, self.keep = root, engine, facts, keep
        self.best: int | None = None  # step of a checkpoint that is kept however old
        self.writing: _Writing | None = None
        self.bytes = 0  # of the last checkpoint, all ranks

        def clean() -> None:
            root.mkdir(parents=True, exist_ok=True)
            for left in root.glob(f"{_PARTIAL}*"):
                shutil.rmtree(left)

        run_on_main(engine.world, clean)

    @property
    def pending(self) -> bool:
        """Whether this rank's thread still writes."""
        return self.writing is not None and self.writing.thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether this rank's thread could not write."""
        return self.writing is not None and not self.pending and self.writing.problem is not None

    def begin(self, step: int) -> None:
        """Copy the state after ``step`` optimiser steps and start writing it."""
        self.finish()
        files = self._files()
        partial = self.root / f"{_PARTIAL}{step:08d}"
        writing = _Writing(step, self.engine.counters(), partial, Thread(), {}, Fault("its thread ended early"))

        def write() -> None:
            writing.problem = capture_error(lambda: writing.listing.update(_write(partial, files)))

        # no daemon: an interpreter that ends would cut it off in the middle of a file
        writing.thread = Thread(target=write, name="checkpoint")
        writing.thread.start()
        self.writing = writing

    def settle(self, *, pending: bool, failed: bool) -> None:
        """After a step on which all ranks agreed whether any of them still writes, or failed: complete what is done."""
        if self.writing is not None and (failed or not pending):
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if any, and complete it. Fault where it can't be."""
        writing = self.writing
        if writing is None:
            return
        writing.thread.join()
        self.writing = None
        answers = gather_objects((writing.listing, writing.problem), self.engine.world)
        problem = next((said for _, said in answers if said), None)
        if problem:
            run_on_main(self.engine.world, lambda: shutil.rmtree(writing.partial, ignore_errors=True))
            raise Fault(f"the checkpoint of step {writing.step} is lost, the ones before are kept: {problem}")
        listing = {name: about for files, _ in answers for name, about in files.items()}
        self.bytes = sum(about["size"] for about in listing.values())
        run_on_main(self.engine.world, lambda: self._complete(writing, listing))

    def _files(self) -> Files:
        """Copies on the host of what this rank writes; every rank must call."""
        engine = self.engine
        world = engine.world
        engine.agree_on_statistics()
        mine = local_fragments(engine.deepspeed)
        if engine.config.train.zero_stage == 0:  # everybody holds everything: each writes its share
            mine = mine[world.rank :: world.size]
        tensors = {fragment_key(f.name, kind, f.start): t for f in mine for kind, t in f.tensors.items()}
        files: Files = {optimizer_file(world.rank, world.size): (_copied(tensors), None)}
        weights = engine.weights()
        if world.is_main:
            files[MODEL] = (weights, None)
            if engine.ema:
                files[EMA] = (_copied(engine.ema.state), {"updates": str(engine.ema.updates)})
        return files

    def _complete(self, writing: _Writing, listing: dict[str, dict[str, Any]]) -> None:
        final = checkpoint_folder(self.root, writing.step)
        about = {"step": writing.step, "counters": writing.counters, "facts": self.facts, "files": listing}
        _write_synced(writing.partial / MARKER, marker_text(about))
        sync_folder(writing.partial)
        if final.exists():  # a damaged one that a resume went back behind
            shutil.rmtree(final)
        writing.partial.rename(final)
        sync_folder(self.root)
        # a newer one here is a damaged one that a resume went back behind: it must not push out what is intact
        for old in [s for s in complete_steps(self.root) if s <= writing.step][: -self.keep]:
            if old != self.best:
                shutil.rmtree(checkpoint_folder(self.root, old))


def _copied(tensors: Tensors) -> Tensors:
    """Copies on the host; one wait for all of them where they come from a GPU."""
    import torch

    copies = {}
    for name, value in tensors.items():
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        copies[name] = host.copy_(value.detach(), non_blocking=True)
    if any(value.is_cuda for value in tensors.values()):
        torch.cuda.synchronize()
    return copies


def _write(partial: Path, files: Files) -> dict[str, dict[str, Any]]:
    """Write and sync the files; name → size and sha256 of the bytes that were meant, whatever the disk gives back."""
    from safetensors.torch import save

    partial.mkdir(parents=True, exist_ok=True)
    listing = {}
    for name, (tensors, metadata) in files.items():
        data = save(tensors, metadata)
        listing[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        _write_synced(partial / name, data)
        del data
    sync_folder(partial)
    return listing


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
