"""Write checkpoints in the background: training continues while a thread of each rank writes.

1. :meth:`Saver.begin` copies the state of each rank to the host. A thread writes and syncs the rank's files into
   ``.partial-<step>``.
2. The reduction that every training step makes anyway tells all ranks when every thread is done. Then, or at a stop or
   the next checkpoint, :meth:`Saver.finish` is called: the main rank writes the marker and renames the folder.

If any rank dies before that, the previous checkpoint is still there and intact. The format of a checkpoint is described
in :mod:`brain_dist.checkpoints.layout`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from brain_dist.checkpoints.evaluations import Evaluations
from brain_dist.checkpoints.layout import (
    EMA,
    MARKER,
    MODEL,
    checkpoint_folder,
    complete_steps,
    encode_marker,
    fragment_key,
    optimizer_file,
)
from brain_dist.common.files import sha256_bytes, sync_folder, write_durably
from brain_dist.errors import Fault
from brain_dist.ranks.group import capture_error, gather_objects, run_on_main
from brain_dist.training.fragments import local_fragments

if TYPE_CHECKING:
    import torch

    from brain_dist.training.engine import Engine

_PARTIAL = ".partial-"
Tensors = dict[str, "torch.Tensor"]
Files = dict[str, tuple[Tensors, dict[str, str] | None]]  # name → tensors on the host, metadata
Listing = dict[str, dict[str, Any]]  # name → size and sha256


class _Write(Thread):
    """Writes this rank's files of one checkpoint.

    Attributes:
        listing: size and sha256 of each file, once the thread has ended.
        problem: why the files could not be written.
    """

    def __init__(self, step: int, counters: dict[str, Any], partial: Path, files: Files) -> None:
        super().__init__(name="checkpoint", daemon=False)  # a daemon would be killed when the interpreter exits
        self.step, self.counters, self.partial = step, counters, partial
        self.listing: Listing = {}
        self.problem: Exception | None = Fault("the thread that writes it ended early")
        self._files = files

    def run(self) -> None:
        self.problem = capture_error(self._write_files)
        self._files.clear()  # frees the copies

    def _write_files(self) -> None:
        from safetensors.torch import save

        self.partial.mkdir(parents=True, exist_ok=True)
        for name, (tensors, metadata) in self._files.items():
            data = save(tensors, metadata)
            self.listing[name] = {"size": len(data), "sha256": sha256_bytes(data)}
            write_durably(self.partial / name, data)
            del data  # before the next file is serialised
        sync_folder(self.partial)


class Saver:
    """Writes the checkpoints of one engine, one at a time. Every rank must make the same calls in the same order.

    Attributes:
        saved: step of the last checkpoint that this process completed; None if there is none.
        bytes: size of the last complete checkpoint, of all ranks.
    """

    def __init__(
        self, root: Path, engine: Engine, settings: dict[str, Any], evaluations: Evaluations | None = None, *, keep: int
    ) -> None:
        """Create ``root`` and remove the incomplete checkpoints of earlier processes.

        Args:
            root: the run's ``checkpoints`` folder, shared by all ranks.
            engine: what is saved.
            settings: the settings that must match on resume, stored in every checkpoint.
            evaluations: the validation results so far, stored in every checkpoint.
            keep: number of complete checkpoints to keep, besides the best one.
        """
        self.saved: int | None = None
        self.bytes = 0
        self._root, self._engine, self._settings, self._keep = root, engine, settings, keep
        self._evaluations = evaluations or Evaluations(None, 0)
        self._write: _Write | None = None

        def remove_incomplete() -> None:
            root.mkdir(parents=True, exist_ok=True)
            for folder in root.glob(f"{_PARTIAL}*"):
                shutil.rmtree(folder)

        run_on_main(engine.world, remove_incomplete)

    @property
    def writing(self) -> bool:
        """Whether this rank's thread is still writing."""
        return self._write is not None and self._write.is_alive()

    @property
    def write_failed(self) -> bool:
        """Whether this rank's thread ended with an error."""
        return self._write is not None and not self.writing and self._write.problem is not None

    def begin(self, step: int) -> None:
        """Copy the state after ``step`` optimiser steps and start to write it. Completes the checkpoint before first.

        Raises:
            Fault: the checkpoint before could not be written.
        """
        self.finish()
        files = self._copy_state()
        self._write = _Write(step, self._engine.counters(), self._root / f"{_PARTIAL}{step:08d}", files)
        self._write.start()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if any, and complete it.

        Raises:
            Fault: a rank could not write its files.
        """
        write = self._write
        if write is None:
            return
        write.join()
        self._write = None
        world = self._engine.world
        results = gather_objects((write.listing, write.problem and str(write.problem)), world)
        problem = next((problem for _, problem in results if problem), None)
        if problem:
            run_on_main(world, lambda: shutil.rmtree(write.partial, ignore_errors=True))
            raise Fault(f"the checkpoint of step {write.step} is lost, older ones are kept: {problem}")
        listing = {name: entry for files, _ in results for name, entry in files.items()}
        self.bytes = sum(entry["size"] for entry in listing.values())
        run_on_main(world, lambda: self._complete(write, listing))
        self.saved = write.step

    def _copy_state(self) -> Files:
        """Copies on the host of what this rank writes. Every rank must call."""
        engine, world = self._engine, self._engine.world
        engine.average_statistics()
        fragments = local_fragments(engine.deepspeed)
        if engine.config.train.zero_stage == 0:  # every rank has everything: each writes a part
            fragments = fragments[world.rank :: world.size]
        tensors = {fragment_key(f.name, kind, f.start): t for f in fragments for kind, t in f.tensors.items()}
        files: Files = {optimizer_file(world.rank, world.size): (_copy_to_host(tensors), None)}
        weights = engine.weights()
        if world.is_main:
            files[MODEL] = (weights, None)
            if engine.ema:
                files[EMA] = (_copy_to_host(engine.ema.state), {"updates": str(engine.ema.updates)})
        return files

    def _complete(self, write: _Write, listing: Listing) -> None:
        """Write the marker, rename the folder, delete old checkpoints; on the main rank."""
        marker = {
            "step": write.step,
            "counters": write.counters,
            "facts": self._settings,
            "evaluations": [row for row in self._evaluations.rows if row["step"] <= write.step],
            "files": listing,
        }
        write_durably(write.partial / MARKER, encode_marker(marker))
        sync_folder(write.partial)
        folder = checkpoint_folder(self._root, write.step)
        if folder.exists():  # damaged: the run resumed from an older one
            shutil.rmtree(folder)
        write.partial.rename(folder)
        sync_folder(self._root)
        # newer checkpoints are damaged, because the run resumed from an older one; they must not displace intact ones
        steps = [step for step in complete_steps(self._root) if step <= write.step]
        for step in steps[: -self._keep]:
            if step != self._evaluations.best:
                shutil.rmtree(checkpoint_folder(self._root, step))


def _copy_to_host(tensors: Tensors) -> Tensors:
    """Copies in host memory; those from a GPU are made asynchronously and waited for once."""
    import torch

    copies = {}
    for name, tensor in tensors.items():
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copies[name] = host.copy_(tensor.detach(), non_blocking=True)
    if any(tensor.is_cuda for tensor in tensors.values()):
        torch.cuda.synchronize()
    return copies
