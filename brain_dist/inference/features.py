"""What a network says about images: its logits, and the features that its classifier sees before its last layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from brain_dist.inference.run import LoadedRun


def forward(network: Any, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The features float32 [B, D] and the logits float32 [B, K] of the network's input [B, C, H, W]."""
    import torch

    with torch.no_grad():
        maps = network.forward_features(images)
        features = network.forward_head(maps, pre_logits=True).flatten(1)
        logits = network.forward_head(maps)
    return features.float().cpu().numpy(), logits.float().cpu().numpy()


def row_outputs(run: LoadedRun, rows: np.ndarray, *, micro_batch: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """The features float32 [N, D] and the logits float32 [N, K] for rows of ``run.dataset``, as in evaluation."""
    from brain_dist.ranks.world import discover

    index = np.asarray(rows, dtype=np.int64)
    seen, features, logits = [], [], []
    for batch in run.batches(index, micro_batch=micro_batch, world=discover({})):
        valid = batch.valid.cpu().numpy()
        values, outputs = forward(run.model, run.normalize(batch.image))
        seen.append(batch.row.cpu().numpy()[valid])
        features.append(values[valid])
        logits.append(outputs[valid])
    place = {int(row): position for position, row in enumerate(np.concatenate(seen))}
    order = [place[int(row)] for row in index]
    return np.concatenate(features)[order], np.concatenate(logits)[order]


def penultimate_features(run: LoadedRun, rows: np.ndarray, *, micro_batch: int = 32) -> np.ndarray:
    """The input of the classifier for these rows of ``run.dataset``, as evaluation shows them; float32 [N, D]."""
    return row_outputs(run, rows, micro_batch=micro_batch)[0]
