"""Evaluate a run on shards that only distinguish tumour from no tumour, by adding up the tumours' probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_dist.errors import UserError

if TYPE_CHECKING:
    import torch

    from brain_dist.store.dataset import Dataset

NO_TUMOUR, TUMOUR = "notumor", "tumor"  # the two classes of such shards


def class_groups(classes: tuple[str, ...], dataset: Dataset) -> list[list[int]]:
    """For each class of ``dataset``, the indices of the run's ``classes`` that it covers; empty if both are the same.

    Raises:
        UserError: the classes of the dataset do not fit the run.
    """
    if dataset.classes == classes:
        return []
    if NO_TUMOUR not in classes or set(dataset.classes) != {NO_TUMOUR, TUMOUR}:
        binary = f", or shards of {NO_TUMOUR} and {TUMOUR} (its probability is the sum over the other classes)"
        raise UserError(
            f"the run has the classes {', '.join(classes)}, but {dataset.root} has {', '.join(dataset.classes)}; use"
            f" shards of the same classes in the same order{binary if NO_TUMOUR in classes else ''}"
        )
    no_tumour = classes.index(NO_TUMOUR)
    tumours = [index for index in range(len(classes)) if index != no_tumour]
    return [[no_tumour] if name == NO_TUMOUR else tumours for name in dataset.classes]


def merge_logits(logits: torch.Tensor, groups: list[list[int]]) -> torch.Tensor:
    """Logits [B, K] → log-probabilities [B, len(groups)], whose softmax is the sum of each group's probabilities."""
    import torch

    log_prob = torch.log_softmax(logits.float(), dim=1)
    return torch.stack([log_prob[:, group].logsumexp(dim=1) for group in groups], dim=1)
