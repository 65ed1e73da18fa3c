"""The order of samples: a permutation each epoch, the same global batches whatever the world."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_dist.errors import UserError
from brain_dist.stream import plan


def steps_of(world: int, micro_batch: int, **settings: int) -> dict[int, list[tuple[int, int, bool]]]:
    """step → its (position, row, valid) over all ranks and micro-steps, sorted by position."""
    rows = np.arange(settings["samples"], dtype=np.int64) * 3  # row numbers need not be 0..N-1
    found: dict[int, list[tuple[int, int, bool]]] = {}
    lengths = set()
    for rank in range(world):
        micros = list(
            plan.training(
                rows,
                rows // 10,
                seed=settings["seed"],
                epochs=settings.get("epochs", 2),
                global_batch=settings["global_batch"],
                micro_batch=micro_batch,
                rank=rank,
                world=world,
                first_step=settings.get("first_step", 0),
                window=settings.get("window", 0),
            )
        )
        lengths.add(len(micros))
        for m in micros:
            entries = zip(m.position.tolist(), m.rows.tolist(), m.valid.tolist(), strict=True)
            found.setdefault(m.step, []).extend(entries)
            assert m.total_weight == min(
                settings["global_batch"],
                len(rows)
                - m.step % plan.steps_per_epoch(len(rows), settings["global_batch"]) * settings["global_batch"],
            )
    assert len(lengths) == 1, "every rank takes the same number of steps"
    return {step: sorted(entries) for step, entries in found.items()}


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    world=st.sampled_from([1, 2, 3, 4, 8]),
    micro_batch=st.integers(1, 8),
    micros=st.integers(1, 4),
    window=st.sampled_from([0, 1, 3]),
)
def test_each_epoch_sees_each_sample_exactly_once(
    samples: int, seed: int, world: int, micro_batch: int, micros: int, window: int
) -> None:
    size = micro_batch * micros * world
    steps = steps_of(world, micro_batch, samples=samples, seed=seed, global_batch=size, window=window)
    per_epoch = plan.steps_per_epoch(samples, size)
    assert sorted(steps) == list(range(2 * per_epoch))
    for epoch in range(2):
        seen = [
            row for step in range(epoch * per_epoch, (epoch + 1) * per_epoch) for _, row, valid in steps[step] if valid
        ]
        assert sorted(seen) == [3 * i for i in range(samples)]


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(1, 400), seed=st.integers(0, 2**31), window=st.sampled_from([0, 2]))
def test_global_batches_are_the_same_for_every_world(samples: int, seed: int, window: int) -> None:
    ways = [(1, 24), (1, 8), (2, 12), (2, 4), (3, 8), (4, 6), (8, 3), (8, 1)]
    first, *others = (
        steps_of(world, micro, samples=samples, seed=seed, global_batch=24, window=window) for world, micro in ways
    )
    for other in others:
        assert other == first


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(1, 200), first_step=st.integers(0, 40), seed=st.integers(0, 99))
def test_starting_in_the_middle_gives_the_rest_of_the_whole(samples: int, first_step: int, seed: int) -> None:
    whole = steps_of(2, 4, samples=samples, seed=seed, global_batch=8, epochs=3)
    rest = steps_of(2, 4, samples=samples, seed=seed, global_batch=8, epochs=3, first_step=first_step)
    assert rest == {step: entries for step, entries in whole.items() if step >= first_step}


def test_epochs_and_seeds_differ() -> None:
    rows = np.arange(100, dtype=np.int64)
    orders = [plan.epoch_order(rows, rows, seed=s, epoch=e) for s in (0, 1) for e in (0, 1)]
    assert len({order.tobytes() for order in orders}) == 4
    # a shuffle, not a rotation or a reversal: neighbours are scattered
    assert np.mean(np.abs(np.diff(orders[0]))) > 20


def test_a_window_keeps_reads_inside_a_few_shards() -> None:
    rows = np.arange(1000, dtype=np.int64)
    shard = rows // 50
    order = plan.epoch_order(rows, shard, seed=0, epoch=0, window=4)
    for begin in range(0, 1000, 200):
        assert len(np.unique(shard[order[begin : begin + 200]])) == 4
    assert not np.array_equal(order, np.sort(order))


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 200), world=st.sampled_from([1, 2, 3, 4, 8]), micro_batch=st.integers(1, 9))
def test_evaluation_counts_each_row_once_with_equal_steps(samples: int, world: int, micro_batch: int) -> None:
    rows = np.arange(samples, dtype=np.int64) + 5
    ranks = [list(plan.evaluation(rows, micro_batch=micro_batch, rank=r, world=world)) for r in range(world)]
    assert len({len(r) for r in ranks}) == 1
    seen = np.concatenate([m.rows[m.valid] for r in ranks for m in r])
    assert np.array_equal(np.sort(seen), rows)


def test_impossible_batch_arithmetic_names_the_mend() -> None:
    assert plan.accumulation(64, 8, 2) == 4
    with pytest.raises(UserError, match=r"train\.micro_batch=10 would do"):
        plan.accumulation(20, 16, 2)
    with pytest.raises(UserError, match=r"such as 33"):
        plan.accumulation(32, 16, 3)


def test_an_empty_training_split_is_refused() -> None:
    empty = np.empty(0, dtype=np.int64)
    with pytest.raises(UserError, match="training split is empty"):
        next(plan.training(empty, empty, seed=0, epochs=1, global_batch=4, micro_batch=4, rank=0, world=1))
