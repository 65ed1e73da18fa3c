"""Checkpoints that are either complete and verified, or not there.

``checkpoints/<step>/`` holds DeepSpeed's state, ``model.safetensors`` (the weights as they compute, readable without
DeepSpeed or pickle), ``ema.safetensors`` where there is an average, and ``COMPLETE``: size and sha256 of every file,
written last. A save goes into a ``.partial`` folder that is renamed when all of it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.data.folder import sync_folder
from brain_dist.dist import World, gather_objects
from brain_dist.errors import Fault, UserError

if TYPE_CHECKING:
    from brain_dist.engine import Engine

MARKER = "COMPLETE"
_STATE = "deepspeed"


def folder(root: Path, step: int) -> Path:
    """Folder of the checkpoint taken before ``step`` (that many optimiser steps are done)."""
    return root / f"{step:08d}"


def steps(root: Path) -> list[int]:
    """Steps of all checkpoints that were completed, oldest first."""
    if not root.is_dir():
        return []
    return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit() and (p / MARKER).is_file())


def verify(path: Path, only: str | None = None) -> list[str]:
    """What is wrong with a completed checkpoint: a line a damaged or missing file, nothing if all is well.

    ``only`` names the one file that matters; the others are not read.
    """
    try:
        files = json.loads((path / MARKER).read_text())["files"]
        files = files if only is None else {only: files[only]}
    except (OSError, ValueError, KeyError) as error:
        return [f"{path / MARKER} is unreadable ({type(error).__name__})"]

    def check(item: tuple[str, dict[str, Any]]) -> str | None:
        name, said = item
        file = path / name
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != said["size"]:
            return f"{file} has {file.stat().st_size} bytes instead of {said['size']}"
        return None if _sha256(file) == said["sha256"] else f"{file} does not match its checksum"

    with ThreadPoolExecutor(4) as pool:
        return [problem for problem in pool.map(check, files.items()) if problem]


def save(root: Path, step: int, engine: Engine, facts: dict[str, Any], *, keep: int) -> Path:
    """Write the checkpoint of ``step`` and drop all but the ``keep`` newest; every rank must call.

    Args:
        root: the run's ``checkpoints`` folder, on a file system that all ranks share.
        step: optimiser steps done.
        engine: what is saved.
        facts: small JSON-able facts a resume must agree with (seed, dataset version, world, …).
        keep: completed checkpoints to keep.
    """
    from safetensors.torch import save_file

    final, partial = folder(root, step), root / f".partial-{step:08d}"
    engine.agree_on_statistics()

    def prepare() -> None:
        shutil.rmtree(partial, ignore_errors=True)  # left by a process that died while saving
        partial.mkdir(parents=True)

    together(engine.world, prepare)
    engine.deepspeed.save_checkpoint(str(partial), tag=_STATE, client_state={"step": step}, save_latest=False)
    weights = engine.weights()

    def complete() -> None:
        save_file(weights, partial / "model.safetensors")
        if engine.ema:
            save_file(engine.ema.state, partial / "ema.safetensors", metadata={"updates": str(engine.ema.updates)})
        files = sorted(p for p in partial.rglob("*") if p.is_file())
        with ThreadPoolExecutor(4) as pool:
            sums = list(pool.map(_synced_sha256, files))
        listing = {
            str(p.relative_to(partial)): {"size": p.stat().st_size, "sha256": digest}
            for p, digest in zip(files, sums, strict=True)
        }
        _write_synced(partial / MARKER, json.dumps({"step": step, "facts": facts, "files": listing}, indent=1))
        if final.exists():  # a damaged one that a resume went back behind
            shutil.rmtree(final)
        partial.rename(final)
        sync_folder(root)
        # a newer one here is a damaged one that a resume went back behind: it must not push out what is intact
        for old in [s for s in steps(root) if s <= step][:-keep]:
            shutil.rmtree(folder(root, old))

    together(engine.world, complete)  # every rank has written before the main rank sums up
    return final


def newest(root: Path, world: World) -> tuple[int, dict[str, Any]] | None:
    """Step and facts of the newest checkpoint that verifies; a damaged one is named, and the one before is taken."""
    found: tuple[int, dict[str, Any]] | None = None
    if world.is_main:
        for step in reversed(steps(root)):
            problems = verify(folder(root, step))
            if not problems:
                found = step, json.loads((folder(root, step) / MARKER).read_text())["facts"]
                break
            warnings.warn(f"checkpoint {step} is damaged and skipped: {problems[0]}", stacklevel=2)
        else:
            if steps(root):
                problem = f"no checkpoint in {root} is intact; move it away to begin anew"
                gather_objects(problem, world)
                raise Fault(problem)
    answer = gather_objects(found, world)[0]
    if isinstance(answer, str):
        raise Fault(answer)
    return answer


def load(root: Path, step: int, engine: Engine) -> None:
    """Put the engine where it was after ``step`` steps; every rank must call."""
    from safetensors import safe_open

    path = folder(root, step)
    loaded, _ = engine.deepspeed.load_checkpoint(str(path), tag=_STATE, load_lr_scheduler_states=False)
    if loaded is None:
        raise Fault(f"DeepSpeed found no state in {path}")
    if engine.ema:
        file = path / "ema.safetensors"
        if not file.is_file():
            raise UserError(f"optim.ema={engine.ema.decay}, but {path} was saved without an average; set optim.ema=0")
        with safe_open(file, framework="pt") as opened:
            engine.ema.updates = int(opened.metadata()["updates"])
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                engine.ema.state[name].copy_(opened.get_tensor(name))


def together(world: World, work: Any) -> None:
    """Run ``work`` on the main rank once all ranks are here; its failure ends all ranks, none is left waiting."""
    from safetensors import SafetensorError

    gather_objects(None, world)
    problem = None
    if world.is_main:
        try:
            work()
        except OSError as error:
            problem = f"{error.filename} could not be written: {error.strerror or error}"
        except (UserError, RuntimeError, SafetensorError) as error:
            problem = str(error)
    problem = gather_objects(problem, world)[0]
    if problem:
        raise Fault(problem)


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _synced_sha256(path: Path) -> str:
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        os.fsync(opened.fileno())
    return digest


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    sync_folder(path.parent)
