"""Decide whether a run can resume from its checkpoint, and at which step."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from brain_dist.checkpoints.layout import checkpoint_folder, complete_steps, read_marker, verify_checkpoint
from brain_dist.config import Config, Precision, to_dict
from brain_dist.errors import Fault, UserError
from brain_dist.ranks.group import gather_objects, run_on_main
from brain_dist.ranks.world import World

# Settings that no later number depends on, so they may change between attempts
_FREE = {
    "run": {"name", "dir", "resume", "device", "deterministic"},
    # the dataset version covers where the data is stored and how it is joined
    "data": {"shards", "sources", "leave_out", "cache_dir", "threads", "prefetch"},
    "train": {"eval_every", "save_every", "keep", "best", "patience", "log_every", "timeout", "skip_limit"},
    "track": {"wandb", "project", "group", "examples"},
}
RANKS, DATASET_VERSION, MICRO_BATCH = "the number of ranks", "the version of data.shards", "train.micro_batch"
# Settings that may change with a message: each step keeps its samples and augmentations, but sums are rounded otherwise
_ELASTIC = {RANKS, MICRO_BATCH, "train.zero_stage", "train.deepspeed"}


def settings_to_match(config: Config, dataset_version: str, world_size: int) -> dict[str, Any]:
    """The settings that must match on resume, by name; every checkpoint stores them."""
    settings = {
        f"{section}.{name}": value
        for section, values in to_dict(config).items()
        for name, value in values.items()
        if name not in _FREE.get(section, set())
    }
    return {**settings, DATASET_VERSION: dataset_version, RANKS: world_size}


def resume_step(config: Config, root: Path, settings: dict[str, Any], world: World) -> int | None:
    """Number of optimiser steps in the checkpoint to resume from; None to train from the start. Every rank must call.

    Another world size, micro-batch or ZeRO stage is accepted, with a message.

    Args:
        config: the run's configuration.
        root: the run's ``checkpoints`` folder.
        settings: :func:`settings_to_match` of this attempt.
        world: this process among all processes.

    Raises:
        UserError: the checkpoint was saved with other settings, or ``run.resume=never`` and the folder contains a run.
        Fault: all checkpoints are damaged.
    """
    if config.run.resume == "never":
        if (config.run.path / "metrics.jsonl").exists() or complete_steps(root):
            raise UserError(f"run.resume=never, but {config.run.path} already contains a run; choose another run.name")
        return None
    newest = newest_checkpoint(root, world)
    if newest is None:
        return None
    step, saved = newest
    # a setting that was added to the configuration later is not in the checkpoint; its default is what the run used
    saved = {**settings_to_match(Config(), settings[DATASET_VERSION], world.size), **saved}
    changes = {name: (saved[name], value) for name, value in settings.items() if saved[name] != value}
    for name, (before, now) in changes.items():
        if name not in _ELASTIC:
            raise UserError(
                f"{config.run.path} was saved at step {step} with {name}={before}, now it is {now};"
                f" set it back to resume, or {advice(config.run.path)}"
            )
    if changes and world.is_main:
        text = ", ".join(f"{name} {before} → {now}" for name, (before, now) in changes.items())
        exception = "; batches of BatchNorm and dropped paths change" if MICRO_BATCH in changes else ""
        print(f"resuming with {text}: samples and augmentations stay the same{exception}", file=sys.stderr, flush=True)
    return step


def saved_precision(root: Path, world: World) -> Precision | None:
    """``train.precision`` of the newest checkpoint in ``root`` whose settings are readable; None if there is none.

    All checkpoints of a run have the same. Every rank must call.
    """
    precision = None
    for step in complete_steps(root) if world.is_main else []:
        with suppress(OSError, ValueError, KeyError):
            precision = read_marker(checkpoint_folder(root, step))["facts"]["train.precision"]
    return gather_objects(precision, world)[0]


def advice(run: Path) -> str:
    """What to do if a run cannot go on with other settings, such as more epochs, which change all learning rates."""
    return f"choose another run.name (add model.weights={run} to start from its weights)"


def newest_checkpoint(root: Path, world: World) -> tuple[int, dict[str, Any]] | None:
    """Step and saved settings (``facts`` of COMPLETE) of the newest intact checkpoint; None if there is no checkpoint.

    The main rank verifies every file. It warns about each damaged checkpoint and tries the one before. Every rank must
    call.

    Raises:
        Fault: there are checkpoints, but all are damaged.
    """
    checkpoint: list[Any] = []

    def find() -> None:
        steps = complete_steps(root)
        for step in reversed(steps):
            folder = checkpoint_folder(root, step)
            problems = verify_checkpoint(folder)
            if not problems:
                checkpoint[:] = step, read_marker(folder)["facts"]
                return
            warnings.warn(f"checkpoint {step} is damaged and skipped: {problems[0]}", stacklevel=2)
        if steps:
            raise Fault(f"all checkpoints in {root} are damaged; move the folder away to train from the start")

    run_on_main(world, find)
    checkpoint = gather_objects(checkpoint, world)[0]
    return (checkpoint[0], checkpoint[1]) if checkpoint else None
