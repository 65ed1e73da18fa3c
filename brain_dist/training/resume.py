"""Whether a run may go on from its checkpoint, and from which step."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from brain_dist.checkpoints.layout import complete_steps
from brain_dist.checkpoints.newest import newest_checkpoint
from brain_dist.config import Config, to_dict
from brain_dist.errors import UserError
from brain_dist.ranks.world import World

# Settings that may change between attempts, because no later number depends on them
_FREE = {
    "run": {"name", "dir", "resume", "device", "deterministic"},
    # where the data lie and how they are joined is told by their version
    "data": {"shards", "sources", "leave_out", "cache_dir", "threads", "prefetch"},
    "train": {"eval_every", "save_every", "keep", "best", "patience", "log_every", "timeout", "skip_limit"},
    "track": {"wandb", "project", "group", "examples"},
}
RANKS, MICRO_BATCH = "the number of ranks", "train.micro_batch"
# What may change too, and is said: the samples and augmentations of each step stay, sums are taken in another order
_ELASTIC = {RANKS, MICRO_BATCH, "train.zero_stage", "train.deepspeed"}


def settings_to_match(config: Config, dataset_version: str, world: int) -> dict[str, Any]:
    """What a resumed run must share with the one that saved: setting → value."""
    held = {
        f"{section}.{name}": value
        for section, settings in to_dict(config).items()
        for name, value in settings.items()
        if name not in _FREE.get(section, set())
    }
    return {**held, "the version of data.shards": dataset_version, RANKS: world}


def resume_step(config: Config, root: Path, now: dict[str, Any], world: World) -> int | None:
    """Step to go on from, None to begin; UserError where the run's folder holds another run.

    Other ranks, another micro-batch and another ZeRO stage are taken, and said. Every rank must call.
    """
    if config.run.resume == "never":
        if (config.run.path / "metrics.jsonl").exists() or complete_steps(root):
            raise UserError(f"{config.run.path} holds a run already and run.resume=never; choose another run.name")
        return None
    found = newest_checkpoint(root, world)
    if found is None:
        return None
    step, saved = found
    changed = {name: (saved.get(name), value) for name, value in now.items() if saved.get(name) != value}
    for name, (before, value) in changed.items():
        if name not in _ELASTIC:
            raise UserError(
                f"{config.run.path} was saved at step {step} with {name}={before}, now it is {value};"
                " set it back to go on, or choose another run.name"
            )
    if changed and world.is_main:
        told = ", ".join(f"{name} {before} → {value}" for name, (before, value) in changed.items())
        drawn = "; BatchNorm's batches and dropped paths do not" if MICRO_BATCH in changed else ""
        print(f"resuming with {told}: samples and augmentations of each step stay{drawn}", file=sys.stderr, flush=True)
    return step
