"""Which samples each rank loads in each step, as a pure function of (seed, epoch, step).

An epoch is a permutation of the training rows, cut into global batches. A global batch is an ordered list of
*positions*. Position p belongs to micro-step ``p // (micro_batch * world_size)`` and there to rank
``p % (micro_batch * world_size) // micro_batch``. The list does not depend on the world size, only its division among
the ranks does: 1, 2 or 8 ranks see the same samples in the same step. The last batch of an epoch is padded with invalid
positions, so that every rank takes the same number of steps and each sample is used once per epoch. (Balanced sampling
uses some samples several times and leaves out others: :mod:`brain_dist.stream.balance`.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from brain_dist.common import counter
from brain_dist.config import Balance
from brain_dist.errors import UserError
from brain_dist.stream.balance import balanced_visits, class_weights, row_of

Rows = npt.NDArray[np.int64]
_BLOCK = 4096  # samples that are planned at once: a call of NumPy costs more than its work on a few samples


@dataclass(frozen=True)
class MicroBatch:
    """The samples that one rank loads at once.

    Attributes:
        epoch: epoch number, 0-based.
        step: optimiser step since the start of training, 0-based, over all epochs.
        micro_step: index of the micro-step inside the step.
        rows: int64 [B], rows of the index; padding repeats other rows of the epoch.
        valid: bool [B], False for padding.
        position: int64 [B], position in the global batch.
        visit: int64 [B], the number that random draws for a sample use, see :mod:`brain_dist.stream.balance`.
        weight: float32 [B], weight in the loss, 0 for padding.
        total_weight: sum of the weights of the whole global batch, the denominator of the loss.
    """

    epoch: int
    step: int
    micro_step: int
    rows: Rows
    valid: npt.NDArray[np.bool_]
    position: Rows
    visit: Rows
    weight: npt.NDArray[np.float32]
    total_weight: float


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """The order of samples of a whole training.

    Attributes:
        rows: int64 [N], rows of the training split.
        shard: int64 [N], number of the shard that stores each row.
        label: int64 [N], class of each row; with balance="collections" a number for its class and collection.
        seed: seed of the run.
        epochs: passes over the training split.
        global_batch: samples of one optimiser step, over all ranks and micro-steps.
        micro_batch: samples that one rank loads at once.
        window: shuffling window in shards, see :func:`epoch_order`.
        balance: "weights", "sampling" or "collections" makes the classes count equally, see
            :mod:`brain_dist.stream.balance`.

    Raises:
        UserError: ``rows`` is empty.
    """

    rows: Rows
    shard: Rows
    label: Rows
    seed: int
    epochs: int
    global_batch: int
    micro_batch: int
    window: int = 0
    balance: Balance = "none"

    def __post_init__(self) -> None:
        if not len(self.rows):
            raise UserError("the training split is empty; rebuild the shards with other --fractions")

    def micro_batches(self, rank: int, world_size: int, first_step: int = 0) -> Iterator[MicroBatch]:
        """Every micro-batch of ``rank`` from step ``first_step`` to the end of training.

        Starting at any step costs one permutation: nothing is read or skipped.
        """
        per_epoch = steps_per_epoch(len(self.rows), self.global_batch)
        micro_steps = accumulation_steps(self.global_batch, self.micro_batch, world_size)
        row_weight = np.ones(int(self.rows.max()) + 1)
        if self.balance == "weights":
            row_weight[self.rows] = class_weights(self.label)
        place = [positions(micro_step, rank, world_size, self.micro_batch) for micro_step in range(micro_steps)]
        block = max(1, _BLOCK // self.global_batch)
        for epoch in range(first_step // per_epoch, self.epochs):
            order = self._epoch_visits(epoch)
            for start in range(max(first_step - epoch * per_epoch, 0), per_epoch, block):
                visits, valid = global_batches(order, start, min(block, per_epoch - start), self.global_batch)
                rows = row_of(visits)
                weight = np.where(valid, row_weight[rows], 0.0)
                total_weight, weight = weight.sum(axis=1).tolist(), weight.astype(np.float32)
                for i, micro_step in product(range(len(rows)), range(micro_steps)):
                    position = place[micro_step]
                    own = slice(position[0], position[-1] + 1)
                    yield MicroBatch(
                        epoch=epoch,
                        step=epoch * per_epoch + start + i,
                        micro_step=micro_step,
                        rows=rows[i, own],
                        valid=valid[i, own],
                        position=position,
                        visit=visits[i, own],
                        weight=weight[i, own],
                        total_weight=total_weight[i],
                    )

    def _epoch_visits(self, epoch: int) -> Rows:
        """All visits of an epoch in their order, int64 [N]."""
        visits, shard = self.rows, self.shard
        if self.balance in ("sampling", "collections"):
            visits, index = balanced_visits(self.rows, self.label, seed=self.seed, epoch=epoch)
            shard = self.shard[index]
        return epoch_order(visits, shard, seed=self.seed, epoch=epoch, window=self.window)


def evaluation_micro_batches(rows: Rows, *, micro_batch: int, rank: int, world_size: int) -> Iterator[MicroBatch]:
    """The micro-batches of ``rank`` that use every row exactly once over all ranks, in order.

    All ranks take the same number of steps; padding is invalid.
    """
    global_batch = micro_batch * world_size
    position = positions(0, rank, world_size, micro_batch)
    for step in range(steps_per_epoch(len(rows), global_batch)):
        (batch,), (batch_valid,) = global_batches(rows, step, 1, global_batch)
        visit, valid = batch[position], batch_valid[position]
        weight, total_weight = valid.astype(np.float32), float(batch_valid.sum())
        yield MicroBatch(0, step, 0, visit, valid, position, visit, weight, total_weight)


def accumulation_steps(global_batch: int, micro_batch: int, world_size: int) -> int:
    """Micro-steps per optimiser step: ``global_batch / (micro_batch * world_size)``.

    Raises:
        UserError: ``global_batch`` is not a multiple of ``micro_batch * world_size``.
    """
    per_micro_step = micro_batch * world_size
    if global_batch % per_micro_step:
        fits = [m for m in range(micro_batch, 0, -1) if global_batch % (m * world_size) == 0]
        multiple = -(-global_batch // world_size) * world_size
        advice = f"set train.global_batch to a multiple of {world_size}, such as {multiple}"
        if fits:
            advice = f"set train.micro_batch={fits[0]}"
        raise UserError(
            f"train.global_batch={global_batch} is not a multiple of train.micro_batch={micro_batch} × {world_size}"
            f" ranks; {advice}"
        )
    return global_batch // per_micro_step


def steps_per_epoch(samples: int, global_batch: int) -> int:
    """Optimiser steps that use each of ``samples`` once; the last batch may be padded."""
    return -(-samples // global_batch)


def epoch_order(rows: Rows, shard: Rows, *, seed: int, epoch: int, window: int = 0) -> Rows:
    """The order of one epoch: a permutation of ``rows``.

    Args:
        rows: int64 [N], the rows (or visits) to shuffle.
        shard: int64 [N], number of the shard that stores each of them.
        seed: seed of the run.
        epoch: epoch number.
        window: 0 shuffles all rows together. W > 0 shuffles the shards, then the rows inside each run of W shards, so
            that reads of data larger than memory stay nearly sequential.

    Returns:
        int64 [N].
    """
    key = counter.bits(seed, "order", epoch, rows)
    if window <= 0:
        return rows[np.argsort(key, kind="stable")]
    shards = np.unique(shard)
    shard_order = np.empty(int(shards.max()) + 1 if len(shards) else 0, dtype=np.int64)
    shuffled = np.argsort(counter.bits(seed, "shards", epoch, shards), kind="stable")
    shard_order[shards[shuffled]] = np.arange(len(shards))
    return rows[np.lexsort((key, shard_order[shard] // window))]


def global_batches(order: Rows, first: int, count: int, global_batch: int) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """The rows of ``count`` steps of an epoch, from step ``first`` on, and which of them are valid; both [count, G].

    Raises:
        ValueError: the epoch has fewer steps.
    """
    start, stop = first * global_batch, (first + count) * global_batch
    rows = order[start:stop]
    if len(rows) <= stop - start - global_batch:
        raise ValueError(f"step {first + count - 1} is beyond the end of an epoch of {len(order)} samples")
    # Padding does not count in the loss, but BatchNorm sees it, so it consists of ordinary samples of the epoch
    padded = np.concatenate([rows, np.resize(order, stop - start - len(rows))]).reshape(count, global_batch)
    return padded, (np.arange(stop - start) < len(rows)).reshape(count, global_batch)


def positions(micro_step: int, rank: int, world_size: int, micro_batch: int) -> Rows:
    """Positions in the global batch that ``rank`` computes in ``micro_step``: int64 [B]."""
    start = (micro_step * world_size + rank) * micro_batch
    return np.arange(start, start + micro_batch, dtype=np.int64)
