"""Find the newest intact checkpoint, the same one on every rank."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from brain_dist.checkpoints.layout import checkpoint_folder, complete_steps, read_marker, verify_checkpoint
from brain_dist.errors import Fault
from brain_dist.ranks.group import gather_objects
from brain_dist.ranks.world import World


def newest_checkpoint(root: Path, world: World) -> tuple[int, dict[str, Any]] | None:
    """Step and saved settings (``facts`` of COMPLETE) of the newest intact checkpoint; None if there is no checkpoint.

    The main rank verifies every file. It warns about each damaged checkpoint and tries the one before. Every rank must
    call.

    Raises:
        Fault: there are checkpoints, but all are damaged.
    """
    answer = (_newest_intact(root), bool(complete_steps(root))) if world.is_main else None
    newest, any_complete = gather_objects(answer, world)[0]
    if newest is None and any_complete:
        raise Fault(f"all checkpoints in {root} are damaged; move the folder away to train from the start")
    return newest


def _newest_intact(root: Path) -> tuple[int, dict[str, Any]] | None:
    for step in reversed(complete_steps(root)):
        folder = checkpoint_folder(root, step)
        problems = verify_checkpoint(folder)
        if not problems:
            return step, read_marker(folder)["facts"]
        warnings.warn(f"checkpoint {step} is damaged and skipped: {problems[0]}", stacklevel=2)
    return None
