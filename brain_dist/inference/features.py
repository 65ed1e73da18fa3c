"""The features of images that a network's classifier sees, before its last layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from brain_dist.inference.run import LoadedRun


def penultimate_features(run: LoadedRun, rows: np.ndarray, *, micro_batch: int = 32) -> np.ndarray:
    """The input of the classifier for these rows of ``run.dataset``, as evaluation shows them; float32 [N, D]."""
    import torch

    from brain_dist.ranks.world import discover

    network: Any = run.model  # timm does not type its methods
    features = np.empty((len(rows), 0), dtype=np.float32)
    order = {int(row): place for place, row in enumerate(rows)}
    with torch.no_grad():
        for batch in run.batches(np.asarray(rows, dtype=np.int64), micro_batch=micro_batch, world=discover({})):
            maps = network.forward_features(run.normalize(batch.image))
            values = network.forward_head(maps, pre_logits=True).flatten(1)[batch.valid].float().cpu().numpy()
            if not features.shape[1]:
                features = np.empty((len(rows), values.shape[1]), dtype=np.float32)
            features[[order[int(row)] for row in batch.row[batch.valid]]] = values
    return features
