"""The logits of all samples of a split, each exactly once, over any number of ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from brain_dist.errors import Fault
from brain_dist.ranks.group import gather_rows
from brain_dist.ranks.world import World
from brain_dist.stream.batch import Batch
from brain_dist.stream.normalize import Normalize

if TYPE_CHECKING:
    import torch


def predict_logits(
    model: torch.nn.Module, normalize: Normalize, batches: Iterable[Batch], rows: npt.NDArray[np.int64], world: World
) -> npt.NDArray[np.float32]:
    """Run ``model`` on this rank's batches and collect the logits of all ranks. Every rank must call.

    Args:
        model: [B, C, H, W] → [B, K], in evaluation mode.
        normalize: turns a batch's images into the model's input.
        batches: this rank's part of the rows.
        rows: int64 [N], the rows that all ranks together must predict.
        world: this process among all processes.

    Returns:
        float32 [N, K] in the order of ``rows``, on every rank.

    Raises:
        Fault: a row is missing or occurs twice, or the logits are not finite.
    """
    import torch

    batch_rows, batch_valid, batch_logits = [], [], []
    # not inference_mode: weights that ZeRO-3 gathers inside it could not be trained afterwards
    with torch.no_grad():
        for batch in batches:
            batch_rows.append(batch.micro.rows)
            batch_valid.append(batch.micro.valid)
            batch_logits.append(model(normalize(batch.image)).float())
    valid = np.concatenate(batch_valid)
    # read once at the end, so that the host loads batches while the device computes
    logits = torch.cat(batch_logits).cpu().numpy()[valid]
    return _in_order(gather_rows(np.concatenate(batch_rows)[valid], world), gather_rows(logits, world), rows)


def _in_order(
    predicted_rows: npt.NDArray[np.int64], logits: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """The logits [N, K] of ``predicted_rows`` [N] in the order of ``rows`` [N]; Fault if the rows differ."""
    order = np.argsort(predicted_rows, kind="stable")
    if not np.array_equal(predicted_rows[order], np.sort(rows)):
        distinct = len(np.unique(predicted_rows))
        raise Fault(f"evaluation predicted {len(predicted_rows)} samples ({distinct} distinct) instead of {len(rows)}")
    if not np.isfinite(logits).all():
        raise Fault("the network's logits are not finite; train with train.precision=amp or a smaller optim.lr")
    return logits[order][np.searchsorted(predicted_rows[order], rows)]
