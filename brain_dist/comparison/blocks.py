"""One value of each model on each collection, or on each fold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brain_dist.comparison.tables import Tables
from brain_dist.judging.refusal import Refusal
from brain_dist.judging.weighted import METRICS, RANKING, WeightedMetrics

DIGITS = 12  # decimals of a block's value


@dataclass(frozen=True)
class Blocks:
    """A metric on B blocks.

    Attributes:
        names: the blocks: collections, or folds as ``version/fold``.
        values: mean over a model's runs, [B, M]; rounded, so that values which differ in their last bits are ties.
        images: number of images [B].
        undefined: blocks that are left out because the metric is undefined there: a class is missing, or the metric
            ranks scores and several networks predicted the block.
    """

    names: list[str]
    values: np.ndarray
    images: np.ndarray
    undefined: list[str]


def values_by_block(tables: Tables, block: np.ndarray, metric: str) -> Blocks:
    """The metric of each model on the images of each block; ``block`` is [N] names."""
    names, values, images, undefined = [], [], [], []
    for name in sorted(set(block)):
        part = block == name
        if metric in RANKING and tables.networks(part) > 1:
            undefined.append(name)
            continue
        whole, one = np.zeros(np.count_nonzero(part), dtype=np.int64), np.ones((1, 1))
        label = tables.label[part]
        row = [
            np.mean([WeightedMetrics(label, prob[part], whole, [metric])(one)[0, 0] for prob in model.prob])
            for model in tables.models
        ]
        if np.isnan(row).any():
            undefined.append(name)
            continue
        names.append(name)
        values.append(np.round(row, DIGITS))
        images.append(len(label))
    return Blocks(names, np.array(values).reshape(len(names), len(tables.models)), np.array(images), undefined)


def collections(tables: Tables, metric: str) -> Blocks:
    """The metric on each collection."""
    return values_by_block(tables, tables.dataset, metric)


def higher_better(blocks: Blocks, metric: str) -> np.ndarray:
    """The values [B, M], with errors negated."""
    return blocks.values if METRICS[metric].higher_is_better else -blocks.values


@dataclass(frozen=True)
class Folds:
    """A metric on all folds of cross-validation, repeated with other splits or not.

    Attributes:
        values: mean over a model's runs, [replications, folds, M].
        images: number of test images [replications, folds].
        ratio: test images / training images of a fold. The fold after the test fold is the validation split.
    """

    values: np.ndarray
    images: np.ndarray
    ratio: float


def folds(tables: Tables, metric: str) -> Folds:
    """The metric on each fold of each dataset version, a replication.

    Raises:
        Refusal: the predictions are not of folds, a fold is missing, dataset versions have other numbers of folds, or
            the metric is undefined on a fold.
    """
    if (tables.fold < 0).any():
        raise Refusal("the predictions are not of folds; build the shards with --split kfold and train once a fold")
    counts = {}
    for version in sorted(set(tables.version)):
        part = tables.version == version
        present, count = np.unique(tables.fold[part]).tolist(), int(tables.folds[part][0])
        if not count:
            raise Refusal(
                "the predictions do not name the number of folds; write them again with `brain-dist evaluate`"
            )
        if len(present) < count:
            raise Refusal(
                f"{version[:8]} has only {_listed(present)} of {count}; every fold must have been the test split once"
            )
        counts[version] = count
    if len(set(counts.values())) > 1:
        raise Refusal(f"splits with {' and '.join(str(count) for count in sorted(set(counts.values())))} folds")
    block = np.array([f"{v}/{f:04d}" for v, f in zip(tables.version, tables.fold, strict=True)], dtype=object)
    blocks = values_by_block(tables, block, metric)
    if blocks.undefined:
        raise Refusal(f"{METRICS[metric].title} is undefined on {len(blocks.undefined)} folds, which lack a class")
    shape = (len(counts), next(iter(counts.values())))
    images = blocks.images.reshape(shape)
    validation = np.roll(images, -1, axis=1) if shape[1] > 2 else 0
    training = images.sum(axis=1, keepdims=True) - images - validation
    return Folds(blocks.values.reshape(*shape, -1), images, float(images.mean() / training.mean()))


def _listed(numbers: list[int]) -> str:
    return f"fold{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
