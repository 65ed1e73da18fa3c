"""A program of torch.export with a free batch size: torch alone runs it, without timm and this project."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from brain_dist.prediction.model import PROGRAM

if TYPE_CHECKING:
    from brain_dist.exporting.source import Source


def write(source: Source, folder: Path) -> None:
    """Write the program [B, C, S, S] → (features [B, D], logits [B, K])."""
    import torch

    from brain_dist.exporting.graph import FeaturesAndLogits

    contract = source.model.contract
    example = torch.zeros(2, contract.channels, contract.size, contract.size)  # torch.export specialises 0 and 1
    batch = torch.export.Dim("batch", min=1, max=4096)
    with torch.no_grad():
        program = torch.export.export(
            FeaturesAndLogits(source.model.opened.model), (example,), dynamic_shapes={"images": {0: batch}}
        )
    torch.export.save(program, folder / PROGRAM)
