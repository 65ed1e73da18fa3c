"""Groups stay whole for any seed, shares are met, and a published split is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_dist.data import split
from brain_dist.errors import UserError

FRACTIONS = st.sampled_from([(0.7, 0.1, 0.2), (0.8, 0.2, 0.0), (0.5, 0.25, 0.25), (1.0, 0.0, 0.0), (0.6, 0.0, 0.4)])


@settings(max_examples=150, deadline=None)
@given(
    groups=st.lists(st.integers(0, 25), min_size=1, max_size=120),
    strata=st.integers(1, 6),
    fractions=FRACTIONS,
    seed=st.integers(0, 2**32),
)
def test_no_group_crosses_a_split_for_any_seed(groups, strata, fractions, seed):
    group = np.array(groups)
    stratum = np.random.default_rng(seed).integers(0, strata, len(group))
    chosen = split.grouped(group, stratum, fractions, seed)
    assert chosen.shape == group.shape
    for member in set(groups):
        assert len(set(chosen[group == member].tolist())) == 1
    assert all(fractions[code] > 0 for code in set(chosen.tolist()))
    np.testing.assert_array_equal(chosen, split.grouped(group, stratum, fractions, seed))
    # the numbering of groups does not matter, only who is with whom
    np.testing.assert_array_equal(chosen, split.grouped(group * 7 + 3, stratum, fractions, seed))


@pytest.mark.parametrize("seed", range(5))
def test_every_stratum_gets_the_asked_shares(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 30, 300)
    group = np.repeat(np.arange(300), sizes)
    stratum = np.repeat(rng.choice(4, 300, p=[0.4, 0.3, 0.2, 0.1]), sizes)
    chosen = split.grouped(group, stratum, (0.7, 0.1, 0.2), seed)
    for kind in range(4):
        shares = np.bincount(chosen[stratum == kind], minlength=3) / (stratum == kind).sum()
        np.testing.assert_allclose(shares, (0.7, 0.1, 0.2), atol=0.02)


def test_seeds_differ():
    group = np.repeat(np.arange(60), 5)
    stratum = group % 3
    ways = {split.grouped(group, stratum, (0.7, 0.1, 0.2), seed).tobytes() for seed in range(10)}
    assert len(ways) == 10


def test_original_keeps_the_test_part_and_takes_validation_from_training_by_groups():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 60, 400)
    stratum = rng.integers(0, 4, 400)
    published = np.where(rng.random(400) < 0.8, "train", "test").tolist()
    chosen = split.original(published, group, stratum, (0.7, 0.1, 0.2), 3)
    np.testing.assert_array_equal(chosen == 2, np.array(published) == "test")
    train, val = set(group[chosen == 0].tolist()), set(group[chosen == 1].tolist())
    assert not train & val
    assert abs((chosen == 1).sum() / (chosen != 2).sum() - 0.125) < 0.03
    without = split.original(published, group, stratum, (0.8, 0.0, 0.2), 3)
    np.testing.assert_array_equal(without == 0, np.array(published) == "train")
    own = split.original(["train", "val", "test"], np.arange(3), np.zeros(3, int), (0.7, 0.1, 0.2), 0)
    np.testing.assert_array_equal(own, [0, 1, 2])


def test_original_needs_a_published_split():
    with pytest.raises(UserError, match="1 image"):
        split.original(["train", None], np.arange(2), np.zeros(2, int), (0.7, 0.1, 0.2), 0)


@pytest.mark.parametrize("text", ["0.7,0.3", "a,b,c", "0.7,0.1,0.3", "0,0.5,0.5", "1.2,-0.1,-0.1", "", "nan,0,1"])
def test_fractions_that_make_no_sense(text):
    with pytest.raises(UserError, match="--fractions"):
        split.parse_fractions(text)


def test_fractions():
    assert split.parse_fractions("0.7, 0.1, 0.2") == (0.7, 0.1, 0.2)
