"""The content of cross_plan.json: what `benchmark cross` tests on what, and what is known of the collections."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from brain_dist.comparison.crossing import NO_TUMOUR, TUMOUR, confounded
from brain_dist.store.dataset import Dataset


@dataclass(frozen=True)
class Pair:
    """Training on one source, testing on another.

    Attributes:
        source: name of the training source.
        test: name of the test source.
        kind: "internal", "published" (internal, with test images that training knew), "external" or "left out" (the
            source is all collections but the test).
        shared: classes that are judged.
        refused: the reason for a missing result, or None.
        excluded: split → images of the other collections that joining left out of it, of "left out" only; they are not
            trained on.
        overlapping: whether some of the other collections' images show pictures or patients of the test, of "left out".
    """

    source: str
    test: str
    kind: str
    shared: tuple[str, ...] = ()
    refused: str | None = None
    excluded: Mapping[str, int] = field(default_factory=dict)
    overlapping: bool = False


def training_counts(dataset: Dataset) -> dict[str, int]:
    """Training images of each class."""
    return dict(dataset.manifest.counts.get("train", {}))


def plan_text(datasets: Mapping[str, Dataset], pairs: Sequence[Pair]) -> str:
    """Content of cross_plan.json: what the matrix needs of the collections, and the pairs."""
    collections = {}
    for name, dataset in datasets.items():
        train = dataset.rows("train")
        columns = dataset.columns
        collections[name] = {
            "version": dataset.version,
            "shards": str(dataset.root.resolve()),
            "classes": list(dataset.classes),
            "train": training_counts(dataset),
            "test": dict(dataset.manifest.counts.get("test", {})),
            "confounded": confounded(columns["dataset"][train], columns["label"][train], dataset.classes),
        }
    document: dict[str, Any] = {"collections": collections, "pairs": [asdict(pair) for pair in pairs]}
    document["together"] = _confounded_together(datasets)
    return json.dumps(document, indent=1) + "\n"


def _confounded_together(datasets: Mapping[str, Dataset]) -> list[str]:
    """Where class and collection are the same thing among the training images of all collections."""
    binary = any(TUMOUR in dataset.classes for dataset in datasets.values())
    names, collections = [], []
    for name, dataset in datasets.items():
        labels = dataset.columns["label"][dataset.rows("train")]
        words = np.array(dataset.classes, dtype=object)[labels]
        names.append(np.where(words == NO_TUMOUR, NO_TUMOUR, TUMOUR).astype(object) if binary else words)
        collections.append(np.full(len(words), name, dtype=object))
    classes, label = np.unique(np.concatenate(names).astype(str), return_inverse=True)
    return confounded(np.concatenate(collections), label, classes.tolist())
