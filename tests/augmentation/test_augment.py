"""Augmentation parameters: a function of the sample alone, inside the image, and the same for every world size."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_dist.augmentation import augment
from brain_dist.config import AugmentConfig
from brain_dist.errors import UserError
from brain_dist.stream import plan

EVERYTHING = AugmentConfig(scale=(0.1, 1.0), ratio=(0.5, 2.0), erase=0.5, mixup=0.8, cutmix=1.0)


def frames(count: int, seed: int = 0) -> augment.Frames:
    draw = np.random.default_rng(seed)
    width, height = draw.integers(1, 700, count), draw.integers(1, 700, count)
    x, y = draw.integers(0, width), draw.integers(0, height)
    columns = {"width": width, "height": height, "head_x": x, "head_y": y, "head_w": width - x, "head_h": height - y}
    return augment.Frames.of(columns, head=True)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 1000), data=st.data())
def test_augmentation_of_a_sample_does_not_depend_on_its_batch(seed: int, epoch: int, data: st.DataObject) -> None:
    all_frames = frames(50)
    everything = augment.decide(EVERYTHING, all_frames, np.arange(50), seed=seed, epoch=epoch)
    rows = np.array(data.draw(st.lists(st.integers(0, 49), min_size=1, max_size=20)))
    batch = augment.decide(EVERYTHING, all_frames, rows, seed=seed, epoch=epoch)
    for name in ("crop", "affine", "gain", "shift", "erase"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(everything, name)[rows])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_crops_stay_inside_the_frame_and_are_never_empty(seed: int) -> None:
    all_frames = frames(200, seed % 1000)
    x, y, width, height = augment.decide(EVERYTHING, all_frames, np.arange(200), seed=seed, epoch=0).crop.T
    assert (width >= 1).all()
    assert (height >= 1).all()
    assert (x >= all_frames.x).all()
    assert (y >= all_frames.y).all()
    assert (x + width <= all_frames.x + all_frames.width).all()
    assert (y + height <= all_frames.y + all_frames.height).all()


def test_decisions_have_the_stated_distributions() -> None:
    count = 20000
    columns = {"width": np.full(count, 512), "height": np.full(count, 512)}
    decisions = augment.decide(
        AugmentConfig(scale=(0.5, 1.0), ratio=(1.0, 1.0), flip=0.25, rotate=20, brightness=0, contrast=0.2, erase=0.3),
        augment.Frames.of(columns, head=False),
        np.arange(count),
        seed=1,
        epoch=2,
    )
    area = decisions.crop[:, 2] * decisions.crop[:, 3] / 512**2
    assert abs(area.mean() - 0.75) < 0.01
    assert area.min() > 0.49
    assert abs((np.linalg.det(decisions.affine[:, :, :2]) < 0).mean() - 0.25) < 0.02
    angle = np.rad2deg(np.arcsin(decisions.affine[:, 1, 0]))
    assert abs(angle.mean()) < 0.5
    assert 19.5 < np.abs(angle).max() <= 20.001
    assert abs((decisions.erase[:, 2] > 0).mean() - 0.3) < 0.02
    np.testing.assert_allclose(
        decisions.gain * 0.5 + decisions.shift, 0.5, atol=1e-6
    )  # contrast changes about mid-gray


def test_another_epoch_augments_differently() -> None:
    first, second = (augment.decide(EVERYTHING, frames(50), np.arange(50), seed=0, epoch=epoch) for epoch in (0, 1))
    assert not np.array_equal(first.crop, second.crop)
    assert not np.array_equal(first.affine, second.affine)


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(1, 60), seed=st.integers(0, 999), step=st.integers(0, 5))
def test_mixing_does_not_depend_on_the_world_size(samples: int, seed: int, step: int) -> None:
    rows = np.arange(samples)
    order = plan.epoch_order(rows, rows, seed=seed, epoch=0)
    _, (valid,) = plan.global_batches(order, step % plan.steps_per_epoch(samples, 24), 1, 24)

    def mix_by_position(world_size: int, micro_batch: int) -> dict[int, tuple[float, ...]]:
        result = {}
        for micro_step in range(24 // (world_size * micro_batch)):
            for rank in range(world_size):
                positions = plan.positions(micro_step, rank, world_size, micro_batch)
                mix = augment.mix(EVERYTHING, positions, valid[positions], seed=seed, step=step)
                assert mix is not None
                for i, position in enumerate(positions.tolist()):
                    result[position] = (float(mix.weight[i]), *mix.box[i].tolist(), bool(mix.blend[i]))
        return result

    whole = mix_by_position(1, 24)
    for world_size, micro_batch in [(2, 4), (3, 8), (4, 6), (2, 12)]:
        assert mix_by_position(world_size, micro_batch) == whole
    for position, (weight, *_) in whole.items():
        assert whole[position ^ 1][0] == weight
        if not (valid[position] and valid[position ^ 1]):
            assert weight == 1.0, "a sample is never mixed with padding"


def test_mixing_is_off_by_default() -> None:
    assert augment.mix(AugmentConfig(), np.arange(4), np.ones(4, dtype=bool), seed=0, step=0) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.5)},
        {"ratio": (2.0, 1.0)},
        {"flip": 1.5},
        {"erase": -0.1},
        {"contrast": 1.0},
        {"rotate": -1.0},
        {"mixup": -0.2},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"augment.{next(iter(wrong))}="):
        AugmentConfig(**wrong)
