"""The order of samples: a permutation in each epoch, and the same global batches for every world size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_dist.errors import UserError
from brain_dist.stream import plan


def samples_by_step(
    world_size: int,
    micro_batch: int,
    *,
    samples: int,
    seed: int,
    global_batch: int,
    epochs: int = 2,
    first_step: int = 0,
    window: int = 0,
) -> dict[int, list[tuple[int, int, bool]]]:
    """step → (position, row, valid) of all ranks and micro-steps, sorted by position."""
    rows = np.arange(samples, dtype=np.int64) * 3  # row numbers need not be 0..N-1
    training = plan.TrainingPlan(
        rows=rows,
        shard=rows // 10,
        label=rows * 0,
        seed=seed,
        epochs=epochs,
        global_batch=global_batch,
        micro_batch=micro_batch,
        window=window,
    )
    per_epoch = plan.steps_per_epoch(samples, global_batch)
    steps: dict[int, list[tuple[int, int, bool]]] = {}
    lengths = set()
    for rank in range(world_size):
        micro_batches = list(training.micro_batches(rank, world_size, first_step))
        lengths.add(len(micro_batches))
        for micro in micro_batches:
            entries = zip(micro.position.tolist(), micro.rows.tolist(), micro.valid.tolist(), strict=True)
            steps.setdefault(micro.step, []).extend(entries)
            assert micro.total_weight == min(global_batch, samples - micro.step % per_epoch * global_batch)
    assert len(lengths) == 1, "every rank takes the same number of steps"
    return {step: sorted(entries) for step, entries in steps.items()}


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    world_size=st.sampled_from([1, 2, 3, 4, 8]),
    micro_batch=st.integers(1, 8),
    micro_steps=st.integers(1, 4),
    window=st.sampled_from([0, 1, 3]),
)
def test_each_epoch_uses_each_sample_exactly_once(
    samples: int, seed: int, world_size: int, micro_batch: int, micro_steps: int, window: int
) -> None:
    size = micro_batch * micro_steps * world_size
    steps = samples_by_step(world_size, micro_batch, samples=samples, seed=seed, global_batch=size, window=window)
    per_epoch = plan.steps_per_epoch(samples, size)
    assert sorted(steps) == list(range(2 * per_epoch))
    for epoch in range(2):
        epoch_steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        rows = [row for step in epoch_steps for _, row, valid in steps[step] if valid]
        assert sorted(rows) == [3 * i for i in range(samples)]


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(1, 400), seed=st.integers(0, 2**31), window=st.sampled_from([0, 2]))
def test_global_batches_do_not_depend_on_the_world_size(samples: int, seed: int, window: int) -> None:
    layouts = [(1, 24), (1, 8), (2, 12), (2, 4), (3, 8), (4, 6), (8, 3), (8, 1)]
    first, *others = (
        samples_by_step(world_size, micro_batch, samples=samples, seed=seed, global_batch=24, window=window)
        for world_size, micro_batch in layouts
    )
    for other in others:
        assert other == first


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(1, 200), first_step=st.integers(0, 40), seed=st.integers(0, 99))
def test_starting_in_the_middle_yields_the_remaining_steps(samples: int, first_step: int, seed: int) -> None:
    arguments = {"samples": samples, "seed": seed, "global_batch": 8, "epochs": 3}
    whole = samples_by_step(2, 4, **arguments)
    rest = samples_by_step(2, 4, **arguments, first_step=first_step)
    assert rest == {step: entries for step, entries in whole.items() if step >= first_step}


def test_epochs_and_seeds_differ() -> None:
    rows = np.arange(100, dtype=np.int64)
    orders = [plan.epoch_order(rows, rows, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({order.tobytes() for order in orders}) == 4
    # a shuffle, not a rotation or a reversal: neighbours are scattered
    assert np.mean(np.abs(np.diff(orders[0]))) > 20


def test_a_window_limits_reads_to_a_few_shards() -> None:
    rows = np.arange(1000, dtype=np.int64)
    shard = rows // 50
    order = plan.epoch_order(rows, shard, seed=0, epoch=0, window=4)
    for begin in range(0, 1000, 200):
        assert len(np.unique(shard[order[begin : begin + 200]])) == 4
    assert not np.array_equal(order, np.sort(order))


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 200), world_size=st.sampled_from([1, 2, 3, 4, 8]), micro_batch=st.integers(1, 9))
def test_evaluation_counts_each_row_once_with_equal_steps(samples: int, world_size: int, micro_batch: int) -> None:
    rows = np.arange(samples, dtype=np.int64) + 5
    ranks = [
        list(plan.evaluation_micro_batches(rows, micro_batch=micro_batch, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(micro_batches) for micro_batches in ranks}) == 1
    valid_rows = np.concatenate([micro.rows[micro.valid] for micro_batches in ranks for micro in micro_batches])
    assert np.array_equal(np.sort(valid_rows), rows)


def test_a_global_batch_that_ranks_cannot_divide_is_refused_with_advice() -> None:
    assert plan.accumulation_steps(64, 8, 2) == 4
    with pytest.raises(UserError, match=r"; set train\.micro_batch=10$"):
        plan.accumulation_steps(20, 16, 2)
    with pytest.raises(UserError, match=r"set train\.global_batch to a multiple of 3, such as 33"):
        plan.accumulation_steps(32, 16, 3)


def test_an_empty_training_split_is_refused() -> None:
    empty = np.empty(0, dtype=np.int64)
    with pytest.raises(UserError, match="training split is empty"):
        plan.TrainingPlan(rows=empty, shard=empty, label=empty, seed=0, epochs=1, global_batch=4, micro_batch=4)


def test_a_step_beyond_the_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="step 3 is beyond the end of an epoch of 5 samples"):
        plan.global_batches(np.arange(5, dtype=np.int64), 2, 2, 2)
