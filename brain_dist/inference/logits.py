"""Logits of every sample of a split, each exactly once, over any number of ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from brain_dist.errors import Fault
from brain_dist.ranks.group import gather_objects
from brain_dist.ranks.world import World
from brain_dist.stream.batch import Batch
from brain_dist.stream.normalize import Normalize

if TYPE_CHECKING:
    import torch


def predict_logits(
    model: torch.nn.Module, normalize: Normalize, batches: Iterable[Batch], rows: npt.NDArray[np.int64], world: World
) -> npt.NDArray[np.float32]:
    """Run ``model`` over this rank's batches and put the logits of all ranks in the order of ``rows``.

    Args:
        model: [B, C, H, W] → [B, K], in evaluation mode.
        normalize: makes the model's input of a batch.
        batches: this rank's share of the planned evaluation.
        rows: int64 [N], every row that must be there.
        world: all ranks must call.

    Returns:
        float32 [N, K], on every rank.

    Raises:
        Fault: a row is missing or came twice; never a wrong number.
    """
    import torch

    seen_rows, seen_logits = [], []
    # not inference_mode: weights that ZeRO-3 gathers inside it could not be trained on afterwards
    with torch.no_grad():
        for batch in batches:
            made = model(normalize(batch.image)).float()
            seen_rows.append(batch.row[batch.valid].cpu().numpy())
            seen_logits.append(made[batch.valid].cpu().numpy())
    mine = (np.concatenate(seen_rows), np.concatenate(seen_logits)) if seen_rows else None
    parts = [part for part in gather_objects(mine, world) if part is not None]
    got_rows = np.concatenate([part[0] for part in parts])
    got_logits = np.concatenate([part[1] for part in parts])
    order = np.argsort(got_rows, kind="stable")
    if not np.array_equal(got_rows[order], np.sort(rows)):
        raise Fault(
            f"evaluation saw {len(got_rows)} samples ({len(np.unique(got_rows))} different) instead of {len(rows)}"
        )
    if not np.isfinite(got_logits).all():
        raise Fault("the network's outputs are not finite numbers; train with train.precision=amp or a lower optim.lr")
    at = np.searchsorted(got_rows[order], rows)
    return got_logits[order][at]
