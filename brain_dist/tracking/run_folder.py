"""The run's folder: its lock, config.yaml, environment.json, preprocess.json, and the summary printed at the start."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING

from brain_dist.common.files import write_atomically
from brain_dist.common.locks import Busy, take_lock
from brain_dist.config import Config, dump
from brain_dist.errors import UserError
from brain_dist.ranks.group import run_on_main
from brain_dist.ranks.threads import Threads
from brain_dist.ranks.world import World
from brain_dist.stream.contract import FILE, Contract

if TYPE_CHECKING:
    import torch

    from brain_dist.store.dataset import Dataset

_PACKAGES = ("brain_dist", "torch", "deepspeed", "timm", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "torchmetrics",
             "numpy", "opencv-python-headless", "pillow")  # fmt: skip
_LOCK_TIMEOUT = 10.0  # seconds; a job that is just ending still holds the lock

_locks: list[IO[str]] = []  # open until the process ends


@dataclass(frozen=True)
class Choices:
    """What was chosen for this machine: the threads of each rank, and why ``train.precision`` is what it is.

    ``precision_reason`` is empty if the user set the precision, and it suits the device.
    """

    threads: Threads
    precision_reason: str


def lock_run_folder(path: Path, world: World) -> None:
    """Create the run's folder and lock it until the process ends. Every rank must call; the main rank holds the lock.

    Raises:
        UserError: another job trains in the folder, or it is not writable or contains a link.
    """

    def lock() -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            link = next((entry for entry in path.iterdir() if entry.is_symlink()), None)
            if link:  # in a run that someone else sent, it may lead to any file of this user
                raise UserError(f"{link} is a symbolic link, and training does not write through links; remove it")
            _locks.append(take_lock(path / ".lock", timeout=_LOCK_TIMEOUT, required=False))
        except Busy:
            raise UserError(f"another job trains in {path}; choose another run.name") from None
        except OSError as error:
            raise UserError(f"{path} can't be written ({error.strerror}); choose another run.dir") from None

    run_on_main(world, lock)


def write_run_files(
    config: Config, dataset: Dataset, world: World, device: torch.device, parameters: int, command: Sequence[str],
    choices: Choices,
) -> None:  # fmt: skip
    """Write config.yaml, environment.json and preprocess.json.

    Args:
        config: the resolved configuration.
        dataset: the opened shards.
        world: this process among all processes.
        device: where this process computes.
        parameters: number of parameters of the network.
        command: the command line of the run.
        choices: what was chosen for this machine.
    """
    # environment variables are left out: they may hold secrets
    environment = {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "devices": f"{world.size} × {_device_name(device)}",
        "threads": choices.threads.count,
        "threads_reason": choices.threads.reason,
        "precision": config.train.precision,
        "precision_reason": choices.precision_reason or "train.precision",
        "world_size": world.size,
        "launcher": world.launcher,
        "git_commit": _commit(),
        "dataset": dataset.name,
        "dataset_version": dataset.version,
        "classes": list(dataset.classes),
        "shards": dataset.origin or str(dataset.root.resolve()),
        "parameters": parameters,
        "command": shlex.join(command),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }
    path = config.run.path
    path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / "config.yaml", dump(config))
    write_atomically(path / "environment.json", json.dumps(environment, indent=1) + "\n")
    contract = Contract.of(config, dataset.classes, dataset.version, dataset)
    write_atomically(path / FILE, contract.to_json())


def describe_run(
    config: Config, dataset: Dataset, world: World, device: torch.device, parameters: int, choices: Choices, *,
    first_step: int, total_steps: int,
) -> str:  # fmt: skip
    """A summary of the run in three lines: network, data, ranks and steps."""
    train = config.train
    accumulation = train.global_batch // (train.micro_batch * world.size)
    precision = train.precision + (f" ({choices.precision_reason})" if choices.precision_reason else "")
    steps = f"resuming at step {first_step} of {total_steps}" if first_step else f"{total_steps} steps"
    return (
        f"{config.run.path}: {config.model.name} ({parameters / 1e6:.1f} M parameters), {config.data.size}²,"
        f" ZeRO {train.zero_stage}, {precision}\n"
        f"{dataset.name} (version {dataset.version[:12]}): {len(dataset.rows('train'))} training,"
        f" {len(dataset.rows('val'))} validation, {len(dataset.rows('test'))} test images;"
        f" loader {config.data.loader}\n"
        f"{world.size} × {device.type} ({world.launcher}) with {choices.threads}, batch {train.global_batch} ="
        f" {train.micro_batch} × {accumulation} accumulated × {world.size} ranks; {steps}"
    )


def _device_name(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The git commit of this checkout, followed by '+' if files differ from it; None outside a checkout."""
    commit = _git("rev-parse", "HEAD")
    return commit and commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
