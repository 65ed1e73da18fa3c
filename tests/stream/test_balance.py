"""Classes of unequal size: what an epoch visits, and what a sample weighs, on any number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_sample_weight

from brain_dist.config import AugmentConfig
from brain_dist.stream import augment, balance, plan

unequal = st.lists(st.integers(1, 60), min_size=1, max_size=5)


def labelled(sizes: list[int]) -> tuple[plan.Rows, plan.Rows]:
    label = np.random.default_rng(sum(sizes)).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return np.arange(len(label), dtype=np.int64) * 3, label


def epochs(rows: plan.Rows, label: plan.Rows, world: int, micro_batch: int, **more: int) -> list[plan.MicroBatch]:
    """Every micro-batch of all ranks over two epochs of balanced sampling, in batches of 24."""
    asked = {"seed": 5, "epochs": 2, "global_batch": 24, "micro_batch": micro_batch, "world": world, **more}
    return [
        m
        for rank in range(world)
        for m in plan.training(rows, rows // 10, rank=rank, label=label, balance="sampling", **asked)  # type: ignore[arg-type]
    ]


@settings(max_examples=60, deadline=None)
@given(sizes=unequal, seed=st.integers(0, 2**31), epoch=st.integers(0, 50))
def test_all_classes_are_visited_alike_and_a_class_evenly(sizes: list[int], seed: int, epoch: int) -> None:
    rows, label = labelled(sizes)
    draws, at = balance.balanced(rows, label, seed=seed, epoch=epoch)
    assert len(draws) == len(np.unique(draws)) == len(rows)  # an epoch is as long as ever, and each visit has a name
    assert np.array_equal(balance.row_of(draws), rows[at])
    of_class = np.bincount(label[at], minlength=len(sizes))
    assert of_class.max() - of_class.min() <= 1
    visits = np.bincount(at, minlength=len(rows))
    for which in range(len(sizes)):
        assert np.ptp(visits[label == which]) <= 1
    assert set(rows[visits > 0]) <= set(draws.tolist())  # the first visit is the row itself


@settings(max_examples=20, deadline=None)
@given(sizes=unequal, first_step=st.integers(0, 9))
def test_balanced_batches_are_the_same_for_every_world_and_from_any_step(sizes: list[int], first_step: int) -> None:
    rows, label = labelled(sizes)

    def told(micros: list[plan.MicroBatch]) -> list[tuple[int, int, int, int, float]]:
        columns = ((m.step, m.position, m.rows, m.draw, m.weight) for m in micros)
        return sorted((step, *entry) for step, *arrays in columns for entry in zip(*(a.tolist() for a in arrays)))  # type: ignore[misc]  # noqa: B905

    whole = told(epochs(rows, label, 1, 24))
    for world, micro_batch in ((2, 4), (3, 8), (4, 6)):
        assert told(epochs(rows, label, world, micro_batch)) == whole
    rest = [entry for entry in whole if entry[0] >= first_step]
    assert told(epochs(rows, label, 2, 4, first_step=first_step)) == rest


def test_each_epoch_leaves_out_other_samples_and_a_second_visit_is_another_picture() -> None:
    rows, label = labelled([200, 20])
    seen = []
    for epoch in (0, 1):
        draws, at = balance.balanced(rows, label, seed=0, epoch=epoch)
        seen.append(set(rows[at[label[at] == 0]]))
        of_small = draws[label[at] == 1]
        assert len(of_small) == 110  # twenty samples, five or six visits each
    assert len(seen[0] & seen[1]) < 80  # 110 of 200 each; 60 of them in both by chance
    frames = augment.Frames.of({"width": np.full(700, 512), "height": np.full(700, 512)}, head=False)
    visited = balance.row_of(of_small)
    made = augment.decide(AugmentConfig(), frames, visited, seed=0, epoch=1, visit=of_small)
    assert len(np.unique(made.gain)) == 110
    once = augment.decide(AugmentConfig(), frames, visited, seed=0, epoch=1)
    assert np.array_equal(made.gain[of_small == visited], once.gain[of_small == visited])


def test_visits_of_one_sample_are_scattered_over_the_epoch() -> None:
    rows, label = labelled([300, 10])
    order = np.concatenate([m.rows for m in epochs(rows, label, 1, 24) if m.epoch == 0])
    places = np.flatnonzero(order == rows[label == 1][0])
    assert 14 <= len(places) <= 17
    assert places.max() - places.min() > 100


@settings(max_examples=30, deadline=None)
@given(sizes=unequal)
def test_weights_are_scikit_learns_and_their_sum_is_that_of_the_global_batch(sizes: list[int]) -> None:
    rows, label = labelled(sizes)
    expected = compute_sample_weight("balanced", label)
    assert balance.class_weights(label) == pytest.approx(expected)
    asked = {"seed": 1, "epochs": 1, "global_batch": 24, "micro_batch": 4, "world": 2}
    ranks = [list(plan.training(rows, rows, rank=r, label=label, balance="weights", **asked)) for r in (0, 1)]  # type: ignore[arg-type]
    for step in {m.step for m in ranks[0]}:
        parts = [m for rank in ranks for m in rank if m.step == step]
        assert len({m.total_weight for m in parts}) == 1
        assert sum(m.weight.sum() for m in parts) == pytest.approx(parts[0].total_weight, rel=1e-5)
        for m in parts:
            assert m.weight == pytest.approx(np.where(m.valid, expected[m.rows // 3], 0))
