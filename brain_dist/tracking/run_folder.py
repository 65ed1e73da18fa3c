"""The run's folder: what it was told, where it ran, and the first line a person sees."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shlex
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from brain_dist.config import Config, dump
from brain_dist.errors import UserError
from brain_dist.ranks.agreement import run_on_main
from brain_dist.ranks.world import World

if TYPE_CHECKING:
    import torch

    from brain_dist.store.dataset import Dataset

_PACKAGES = ("brain_dist", "torch", "deepspeed", "timm", "nvidia-dali-cuda120", "torchmetrics", "numpy", "pillow")


_locks: list[IO[str]] = []  # held to the end of the process, however that comes
_PATIENCE = 10.0  # seconds that a job which ends gets to let go of its folder


def lock_run_folder(path: Path, world: World) -> None:
    """Make the run's folder and keep other jobs out of it; UserError where one is in it, or it can't be written to.

    Every rank must call; the main one holds the lock.
    """

    def take() -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / ".lock").open("w")
        except OSError as error:
            raise UserError(f"{path} can't be written ({error.strerror}); choose another run.dir") from None
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise UserError(f"another job trains in {path} at this moment; choose another run.name") from None
                time.sleep(0.2)
            except OSError:  # a file system without locks
                break
        _locks.append(lock)

    run_on_main(world, take)


def write_run_files(
    config: Config, dataset: Dataset, world: World, device: torch.device, parameters: int, command: list[str]
) -> None:
    """Write config.yaml and environment.json."""
    path = config.run.path
    path.mkdir(parents=True, exist_ok=True)
    _replace(path / "config.yaml", dump(config))
    facts = environment(config, dataset, world, device, parameters, command)
    _replace(path / "environment.json", json.dumps(facts, indent=1) + "\n")


def environment(
    config: Config, dataset: Dataset, world: World, device: torch.device, parameters: int, command: list[str]
) -> dict[str, Any]:
    """Versions, devices, commit and data of a run; no environment variables, which may hold secrets."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
        "devices": f"{world.size} × {name}",
        "threads": torch.get_num_threads(),
        "world_size": world.size,
        "launcher": world.launcher,
        "git_commit": _commit(),
        "dataset": dataset.manifest["name"],
        "dataset_version": dataset.version,
        "classes": list(dataset.classes),
        "shards": dataset.origin or str(dataset.root.resolve()),
        "parameters": parameters,
        "command": shlex.join(command),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def describe_run(
    config: Config, dataset: Dataset, world: World, device: torch.device, parameters: int, first: int, total: int
) -> str:
    """What is about to happen, in a few lines."""
    train = config.train
    micros = train.global_batch // (train.micro_batch * world.size)
    begin = f"resuming at step {first} of {total}" if first else f"{total} steps"
    return (
        f"{config.run.path}: {config.model.name} ({parameters / 1e6:.1f} M parameters), {config.data.size}²,"
        f" {train.precision}, ZeRO {train.zero_stage}\n"
        f"{dataset.manifest['name']} (version {dataset.version[:12]}): {len(dataset.rows('train'))} training,"
        f" {len(dataset.rows('val'))} validation, {len(dataset.rows('test'))} test images;"
        f" loader {config.data.loader}\n"
        f"{world.size} × {device.type} ({world.launcher}), batch {train.global_batch} ="
        f" {train.micro_batch} × {micros} accumulated × {world.size} ranks; {begin}"
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this package lies in, with '+' when files differ from it."""
    here = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *words], capture_output=True, text=True, check=False, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
