"""Class balancing: what an epoch visits and what a sample weighs, on any number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_sample_weight

from brain_dist.augmentation import augment
from brain_dist.config import AugmentConfig, Balance
from brain_dist.stream import balance, plan

class_sizes = st.lists(st.integers(1, 60), min_size=1, max_size=5)


def rows_and_labels(sizes: list[int]) -> tuple[plan.Rows, plan.Rows]:
    label = np.random.default_rng(sum(sizes)).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return np.arange(len(label), dtype=np.int64) * 3, label


def balanced_plan(rows: plan.Rows, label: plan.Rows, mode: Balance, micro_batch: int) -> plan.TrainingPlan:
    """Two epochs in global batches of 24."""
    return plan.TrainingPlan(
        rows=rows,
        shard=rows // 10,
        label=label,
        seed=5,
        epochs=2,
        global_batch=24,
        micro_batch=micro_batch,
        balance=mode,
    )


@settings(max_examples=60, deadline=None)
@given(sizes=class_sizes, seed=st.integers(0, 2**31), epoch=st.integers(0, 50))
def test_all_classes_are_visited_equally_often_and_a_class_evenly(sizes: list[int], seed: int, epoch: int) -> None:
    rows, label = rows_and_labels(sizes)
    visits, index = balance.balanced_visits(rows, label, seed=seed, epoch=epoch)
    assert len(visits) == len(np.unique(visits)) == len(rows)  # the length of an epoch stays, and visits are distinct
    assert np.array_equal(balance.row_of(visits), rows[index])
    class_visits = np.bincount(label[index], minlength=len(sizes))
    assert class_visits.max() - class_visits.min() <= 1
    row_visits = np.bincount(index, minlength=len(rows))
    for i in range(len(sizes)):
        assert np.ptp(row_visits[label == i]) <= 1
    assert set(rows[row_visits > 0]) <= set(visits.tolist())  # the first visit is the row itself


@settings(max_examples=20, deadline=None)
@given(sizes=class_sizes, first_step=st.integers(0, 9))
def test_balanced_batches_do_not_depend_on_the_world_size_or_first_step(sizes: list[int], first_step: int) -> None:
    rows, label = rows_and_labels(sizes)

    def samples(world_size: int, micro_batch: int, first_step: int = 0) -> list[tuple[int, int, int, int, float]]:
        """(step, position, row, visit, weight) of all ranks, sorted."""
        training = balanced_plan(rows, label, "sampling", micro_batch)
        return sorted(
            (micro.step, *sample)
            for rank in range(world_size)
            for micro in training.micro_batches(rank, world_size, first_step)
            for sample in zip(
                micro.position.tolist(),
                micro.rows.tolist(),
                micro.visit.tolist(),
                micro.weight.tolist(),
                strict=True,
            )
        )

    whole = samples(1, 24)
    for world_size, micro_batch in ((2, 4), (3, 8), (4, 6)):
        assert samples(world_size, micro_batch) == whole
    assert samples(2, 4, first_step) == [sample for sample in whole if sample[0] >= first_step]


def test_each_epoch_leaves_out_different_samples_and_each_visit_is_augmented_differently() -> None:
    rows, label = rows_and_labels([200, 20])
    rows_of_large_class = []
    for epoch in (0, 1):
        visits, index = balance.balanced_visits(rows, label, seed=0, epoch=epoch)
        rows_of_large_class.append(set(rows[index[label[index] == 0]]))
        visits_of_small_class = visits[label[index] == 1]
        assert len(visits_of_small_class) == 110  # twenty samples, five or six visits each
    # 110 of 200 in each epoch; 60 of them in both by chance
    assert len(rows_of_large_class[0] & rows_of_large_class[1]) < 80
    frames = augment.Frames.of({"width": np.full(700, 512), "height": np.full(700, 512)}, head=False)
    visited_rows = balance.row_of(visits_of_small_class)
    by_visit = augment.decide(AugmentConfig(), frames, visited_rows, seed=0, epoch=1, visit=visits_of_small_class)
    assert len(np.unique(by_visit.gain)) == 110
    by_row = augment.decide(AugmentConfig(), frames, visited_rows, seed=0, epoch=1)
    first_visit = visits_of_small_class == visited_rows
    assert np.array_equal(by_visit.gain[first_visit], by_row.gain[first_visit])


def test_visits_of_one_sample_are_spread_over_the_epoch() -> None:
    rows, label = rows_and_labels([300, 10])
    micro_batches = balanced_plan(rows, label, "sampling", 24).micro_batches(rank=0, world_size=1)
    order = np.concatenate([micro.rows for micro in micro_batches if micro.epoch == 0])
    places = np.flatnonzero(order == rows[label == 1][0])
    assert 14 <= len(places) <= 17
    assert places.max() - places.min() > 100


@settings(max_examples=30, deadline=None)
@given(sizes=class_sizes)
def test_weights_equal_scikit_learn_and_sum_to_the_total_of_the_global_batch(sizes: list[int]) -> None:
    rows, label = rows_and_labels(sizes)
    expected = compute_sample_weight("balanced", label)
    assert balance.class_weights(label) == pytest.approx(expected)
    training = balanced_plan(rows, label, "weights", micro_batch=4)
    ranks = [list(training.micro_batches(rank, world_size=2)) for rank in (0, 1)]
    for step in {micro.step for micro in ranks[0]}:
        parts = [micro for micro_batches in ranks for micro in micro_batches if micro.step == step]
        assert len({micro.total_weight for micro in parts}) == 1
        assert sum(micro.weight.sum() for micro in parts) == pytest.approx(parts[0].total_weight, rel=1e-5)
        for micro in parts:
            assert micro.weight == pytest.approx(np.where(micro.valid, expected[micro.rows // 3], 0))
