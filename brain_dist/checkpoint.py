"""Checkpoints that are either complete and verified, or not there; readable on any number of ranks.

``checkpoints/<step>/`` holds ``model.safetensors`` (the weights as they compute, and buffers), ``ema.safetensors``
where there is an average, ``optimizer-R-of-W.safetensors`` (the fp32 weights and moments that rank R held, as
:mod:`brain_dist.fragments` of named parameters) and ``COMPLETE``: step, counters, the run's facts, size and sha256 of
every file; written last. :mod:`brain_dist.saving` writes them. Nothing here is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.dist import World, gather_objects
from brain_dist.errors import Fault, UserError
from brain_dist.numerics import Skips

if TYPE_CHECKING:
    import torch

    from brain_dist.engine import Engine

MARKER, MODEL, EMA = "COMPLETE", "model.safetensors", "ema.safetensors"


def folder(root: Path, step: int) -> Path:
    """Folder of the checkpoint taken before ``step`` (that many optimiser steps are done)."""
    return root / f"{step:08d}"


def optimizer_file(rank: int, world: int) -> str:
    """Name of the file with the fragments that ``rank`` held."""
    return f"optimizer-{rank:05d}-of-{world:05d}.safetensors"


def fragment_key(name: str, kind: str, start: int) -> str:
    """Name of a fragment's tensor in its file; parameters' names hold no colon."""
    return f"{name}:{kind}:{start}"


def steps(root: Path) -> list[int]:
    """Steps of all checkpoints that were completed, oldest first."""
    if not root.is_dir():
        return []
    return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit() and (p / MARKER).is_file())


def marker_text(about: dict[str, Any]) -> bytes:
    """The text of COMPLETE: JSON, and its own checksum in the last line."""
    body = json.dumps(about, indent=1).encode() + b"\n"
    return body + hashlib.sha256(body).hexdigest().encode() + b"\n"


def read_marker(path: Path) -> dict[str, Any]:
    """What COMPLETE says of a checkpoint: step, counters, facts, files. ValueError where its text is damaged."""
    body, _, digest = (path / MARKER).read_bytes().rstrip(b"\n").rpartition(b"\n")
    body += b"\n"
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError("it does not match its own checksum")
    return json.loads(body)


def verify(path: Path, only: str | None = None) -> list[str]:
    """What is wrong with a completed checkpoint: a line a damaged or missing file, nothing if all is well.

    ``only`` names the one file that matters; the others are not read.
    """
    try:
        files = read_marker(path)["files"]
        files = files if only is None else {only: files[only]}
    except (OSError, ValueError, KeyError) as error:
        return [f"{path / MARKER} is unreadable ({error or type(error).__name__})"]

    def check(item: tuple[str, dict[str, Any]]) -> str | None:
        name, said = item
        file = path / name
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != said["size"]:
            return f"{file} has {file.stat().st_size} bytes instead of {said['size']}"
        return None if sha256(file) == said["sha256"] else f"{file} does not match its checksum"

    with ThreadPoolExecutor(4) as pool:
        return [problem for problem in pool.map(check, files.items()) if problem]


def newest(root: Path, world: World) -> tuple[int, dict[str, Any]] | None:
    """Step and facts of the newest checkpoint that verifies; a damaged one is named, and the one before is taken.

    Every rank must call. Fault where there are checkpoints and none is intact.
    """
    found: tuple[int, dict[str, Any]] | str | None = None
    if world.is_main:
        for step in reversed(steps(root)):
            problems = verify(folder(root, step))
            if not problems:
                found = step, read_marker(folder(root, step))["facts"]
                break
            warnings.warn(f"checkpoint {step} is damaged and skipped: {problems[0]}", stacklevel=2)
        else:
            if steps(root):
                found = f"no checkpoint in {root} is intact; move it away to begin anew"
    answer = gather_objects(found, world)[0]
    if isinstance(answer, str):
        raise Fault(answer)
    return answer


def load(root: Path, step: int, engine: Engine) -> dict[str, Any]:
    """Put the engine where it was after ``step`` steps, whatever the ranks and stage that saved; every rank must call.

    Returns what :func:`read_marker` gives. UserError where the average that ``optim.ema`` asks for was not saved.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    from brain_dist import fragments

    path = folder(root, step)
    marker = read_marker(path)
    saved = load_file(path / MODEL)
    for name, value in engine.module.named_buffers():
        value.copy_(saved[name])
    with FragmentReader(path) as reader:
        for fragment in fragments.held(engine.deepspeed):
            for kind, here in fragment.tensors.items():
                reader.fill(here, fragment.name, kind, fragment.start)
    fragments.set_counters(engine.deepspeed, marker["counters"])
    fragments.weights_follow(engine.deepspeed)
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


def together(world: World, work: Callable[[], None]) -> None:
    """Run ``work`` on the main rank once all ranks are here; its failure ends all ranks, none is left waiting."""
    gather_objects(None, world)
    problem = gather_objects(attempt(work) if world.is_main else None, world)[0]
    if problem:
        raise problem


def attempt(work: Callable[[], None]) -> UserError | Fault | None:
    """Run ``work``; None, or why it could not be done (a full disk, a lost right, a bad file) in one line."""
    from safetensors import SafetensorError

    try:
        work()
    except OSError as error:
        return Fault(f"{error.filename or 'a file'} could not be written: {error.strerror or error}")
    except (UserError, Fault) as error:
        return error
    except (RuntimeError, SafetensorError) as error:
        return Fault(str(error))
    return None


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
