"""Steps whose loss or gradient is no number: skipped, counted; some in a row end the run with the evidence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brain_dist.errors import Fault

if TYPE_CHECKING:
    import numpy as np

    from brain_dist.ranks.world import World
    from brain_dist.stream.batch import Batch


@dataclass
class Skips:
    """Steps that left the weights as they were: ``total`` of the run, ``in_a_row`` up to the last step."""

    total: int = 0
    in_a_row: int = 0

    def note(self, skipped: bool) -> None:
        """Count one step."""
        self.total += skipped
        self.in_a_row = self.in_a_row + 1 if skipped else 0


def raise_nonfinite(
    run: Path, step: int, skips: Skips, batches: Sequence[Batch], keys: np.ndarray, world: World
) -> None:
    """Keep what this rank fed to ``step`` and raise a Fault.

    Writes ``nonfinite/step-S-rank-R.safetensors`` (image uint8 [B, C, H, W], label, row and valid of the step's
    micro-batches, one after the other) and a .json with the samples' keys beside it. ``keys``: the index's column.
    """
    import torch
    from safetensors.torch import save_file

    folder = run / "nonfinite"
    folder.mkdir(exist_ok=True)
    name = folder / f"step-{step:08d}-rank-{world.rank:05d}.safetensors"
    parts = {
        what: torch.cat([getattr(b, what).cpu() for b in batches]).contiguous()
        for what in ("image", "label", "row", "valid")
    }
    save_file(parts, name)
    name.with_suffix(".json").write_text(json.dumps([str(keys[row]) for row in parts["row"].tolist()], indent=1) + "\n")
    raise Fault(
        f"loss or gradient was not finite in {skips.in_a_row} steps in a row, the last one is {step}; its images are in"
        f" {folder}; lower optim.lr, or set train.precision=amp or fp32"
    )
