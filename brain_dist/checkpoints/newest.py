"""Choose the newest intact checkpoint, the same one on every rank."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.checkpoints.layout import checkpoint_folder, complete_steps, read_marker, verify_checkpoint
from brain_dist.errors import Fault
from brain_dist.ranks.group import gather_objects
from brain_dist.ranks.world import World

if TYPE_CHECKING:
    pass


def newest_checkpoint(root: Path, world: World) -> tuple[int, dict[str, Any]] | None:
    """Step and facts of the newest checkpoint that verifies; a damaged one is named, and the one before is taken.

    Every rank must call. Fault where there are checkpoints and none is intact.
    """
    found: tuple[int, dict[str, Any]] | str | None = None
    if world.is_main:
        for step in reversed(complete_steps(root)):
            problems = verify_checkpoint(checkpoint_folder(root, step))
            if not problems:
                found = step, read_marker(checkpoint_folder(root, step))["facts"]
                break
            warnings.warn(f"checkpoint {step} is damaged and skipped: {problems[0]}", stacklevel=2)
        else:
            if complete_steps(root):
                found = f"no checkpoint in {root} is intact; move it away to begin anew"
    answer = gather_objects(found, world)[0]
    if isinstance(answer, str):
        raise Fault(answer)
    return answer
