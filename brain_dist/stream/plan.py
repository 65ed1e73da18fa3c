"""Which samples a step sees: pure functions of (seed, epoch, step), the same on any number of ranks.

An epoch is a permutation of the training rows, cut into global batches. A global batch is an ordered list of
*positions*; position p belongs to micro-step ``p // (micro_batch * world)`` and, inside it, to rank
``p % (micro_batch * world) // micro_batch``. The list does not depend on the world, only its cutting does: so 1, 2 or 8
ranks see the same samples in the same step. The last
batch of an epoch is filled up with invalid positions, so that every rank takes the same number of steps and no sample
is dropped or seen twice. (Balanced sampling visits some twice and leaves others out: :mod:`brain_dist.stream.balance`.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from brain_dist.config import Balance
from brain_dist.errors import UserError
from brain_dist.stream import counter
from brain_dist.stream.balance import balanced, class_weights, row_of

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MicroBatch:
    """What one rank loads at once.

    Attributes:
        epoch, step: step counts optimiser steps from the start of training (0-based), over all epochs.
        micro: index of the micro-step inside the step.
        rows: int64 [B], rows of the index; on padding, a row that is loaded but never counted.
        valid: bool [B], False on padding.
        position: int64 [B], place in the global batch.
        draw: int64 [B], what is drawn at random for a sample is drawn for this number: the row on its first visit in
            the epoch, another number on each further one.
        weight: float32 [B], weight in the loss, 0 on padding.
        total_weight: sum of the weights of the whole global batch (the loss's denominator).
    """

    epoch: int
    step: int
    micro: int
    rows: Rows
    valid: npt.NDArray[np.bool_]
    position: Rows
    draw: Rows
    weight: npt.NDArray[np.float32]
    total_weight: float


def accumulation(global_batch: int, micro_batch: int, world: int) -> int:
    """Micro-steps a step, so that ``micro_batch * accumulation * world == global_batch``; UserError if none fits."""
    per_micro = micro_batch * world
    if global_batch % per_micro:
        fits = [m for m in range(micro_batch, 0, -1) if global_batch % (m * world) == 0]
        mend = (
            f"train.micro_batch={fits[0]} would do"
            if fits
            else f"choose a train.global_batch that {world} ranks divide, such as {-(-global_batch // world) * world}"
        )
        raise UserError(
            f"train.global_batch={global_batch} is not train.micro_batch={micro_batch} × {world} ranks × a whole"
            f" number; {mend}"
        )
    return global_batch // per_micro


def steps_per_epoch(samples: int, global_batch: int) -> int:
    """Optimiser steps that see each of ``samples`` once; the last one may be partly filled."""
    return -(-samples // global_batch)


def epoch_order(rows: Rows, shard: npt.NDArray[np.int64], *, seed: int, epoch: int, window: int = 0) -> Rows:
    """The order of one epoch: a permutation of ``rows``.

    Args:
        rows: int64 [N], the rows of the training split.
        shard: int64 [N], number of the shard that holds each row.
        window: 0 shuffles all rows together. W > 0 shuffles the shards, then the samples inside each run of W shards,
            so that reads of data larger than memory stay near-sequential.

    Returns:
        int64 [N].
    """
    key = counter.bits(seed, "order", epoch, rows)
    if window <= 0:
        return rows[np.argsort(key, kind="stable")]
    present = np.unique(shard)
    turn = np.empty(int(present.max()) + 1 if len(present) else 0, dtype=np.int64)
    turn[present[np.argsort(counter.bits(seed, "shards", epoch, present), kind="stable")]] = np.arange(len(present))
    return rows[np.lexsort((key, turn[shard] // window))]


def global_batch_at(order: Rows, step_in_epoch: int, global_batch: int) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """The ordered rows of one step [G], and which of them are valid [G]."""
    chunk = order[step_in_epoch * global_batch : (step_in_epoch + 1) * global_batch]
    if not len(chunk):
        raise ValueError(f"step {step_in_epoch} lies beyond an epoch of {len(order)} samples")
    # Filled up with other samples of the epoch: not counted, but BatchNorm sees them, so they should be ordinary ones
    rows = np.concatenate([chunk, np.resize(order, global_batch - len(chunk))])
    return rows, np.arange(global_batch) < len(chunk)


def positions(micro: int, rank: int, world: int, micro_batch: int) -> Rows:
    """Positions in the global batch that ``rank`` computes in micro-step ``micro``: int64 [B]."""
    start = (micro * world + rank) * micro_batch
    return np.arange(start, start + micro_batch, dtype=np.int64)


def training(
    rows: Rows,
    shard: npt.NDArray[np.int64],
    *,
    seed: int,
    epochs: int,
    global_batch: int,
    micro_batch: int,
    rank: int,
    world: int,
    first_step: int = 0,
    window: int = 0,
    label: Rows | None = None,
    balance: Balance = "none",
) -> Iterator[MicroBatch]:
    """Every micro-batch of ``rank`` from step ``first_step`` to the end of training.

    Starting at step k costs one permutation, whatever k is: nothing is read or skipped through. ``balance`` makes
    the classes in ``label`` (int64 [N], of ``rows``) count alike: by their weights, or by how often they are visited.
    """
    if not len(rows):
        raise UserError("the training split is empty; rebuild the shards with other --fractions")
    per_epoch = steps_per_epoch(len(rows), global_batch)
    micros = accumulation(global_batch, micro_batch, world)
    label = np.zeros_like(rows) if label is None else label
    weights = np.ones(int(rows.max()) + 1)
    if balance == "weights":
        weights[rows] = class_weights(label)
    for epoch in range(first_step // per_epoch, epochs):
        draws, at = rows, np.arange(len(rows))
        if balance == "sampling":
            draws, at = balanced(rows, label, seed=seed, epoch=epoch)
        order = epoch_order(draws, shard[at], seed=seed, epoch=epoch, window=window)
        begin = max(first_step - epoch * per_epoch, 0)
        for step_in_epoch in range(begin, per_epoch):
            batch, valid = global_batch_at(order, step_in_epoch, global_batch)
            weight = np.where(valid, weights[row_of(batch)], 0.0)
            for micro in range(micros):
                place = positions(micro, rank, world, micro_batch)
                yield MicroBatch(
                    epoch=epoch,
                    step=epoch * per_epoch + step_in_epoch,
                    micro=micro,
                    rows=row_of(batch[place]),
                    valid=valid[place],
                    position=place,
                    draw=batch[place],
                    weight=weight[place].astype(np.float32),
                    total_weight=float(weight.sum()),
                )


def evaluation(rows: Rows, *, micro_batch: int, rank: int, world: int) -> Iterator[MicroBatch]:
    """Every row once over all ranks, in order; all ranks take the same number of steps, padding is invalid."""
    for step in range(steps_per_epoch(len(rows), micro_batch * world)):
        batch, valid = global_batch_at(rows, step, micro_batch * world)
        place = positions(0, rank, world, micro_batch)
        rows_, counted = batch[place], valid[place]
        yield MicroBatch(0, step, 0, rows_, counted, place, rows_, counted.astype(np.float32), float(valid.sum()))
