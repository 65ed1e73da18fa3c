"""The definition of an input image's pixels, as pure functions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_dist.augmentation.augment import Decisions, Frames, decide, no_augmentation
from brain_dist.config import AugmentConfig
from brain_dist.stream.pixels import Sampling, brightness_tables, max_reduction

STRONG = AugmentConfig(scale=(0.1, 1.0), ratio=(0.5, 2.0), rotate=180, brightness=0.5, contrast=0.5)


def frames(count: int, seed: int) -> Frames:
    draw = np.random.default_rng(seed)
    width, height = draw.integers(1, 3000, count), draw.integers(1, 3000, count)
    x, y = draw.integers(0, width), draw.integers(0, height)
    columns = {"width": width, "height": height, "head_x": x, "head_y": y, "head_w": width - x, "head_h": height - y}
    return Frames.of(columns, head=True)


def decisions(seed: int, count: int = 100) -> Decisions:
    return decide(STRONG, frames(count, seed), np.arange(count), seed=seed, epoch=0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(32, 512))
def test_the_reduction_is_the_largest_power_of_two_that_keeps_the_crop_as_large_as_the_output(
    seed: int, size: int
) -> None:
    of = decisions(seed)
    sampling, side = Sampling.of(of, size), of.crop[:, 2:].min(axis=1)
    reduction = sampling.reduction
    assert (np.log2(reduction) % 1 == 0).all()
    assert ((reduction * size <= side) | (reduction == 1)).all()
    assert (2 * reduction * size > side).all()
    assert reduction.max() <= max_reduction(frames(100, seed), size)
    left, top, right, bottom = sampling.region.T
    x, y, width, height = of.crop.T
    assert (left * reduction <= x).all()
    assert (x < (left + 1) * reduction).all()
    assert (right * reduction >= x + width).all()
    assert (right * reduction < x + width + reduction).all()
    assert (top * reduction <= y).all()
    assert (bottom * reduction >= y + height).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(32, 512))
def test_the_matrix_takes_corners_of_the_output_to_rotated_corners_of_the_crop(seed: int, size: int) -> None:
    """Crop, rotate and flip one after the other, in pixels of the stored image."""
    of = decisions(seed)
    sampling = Sampling.of(of, size)
    for i, (x, y, width, height) in enumerate(of.crop.tolist()):
        for output in ((0, 0), (size, 0), (0, size), (size, size), (size / 2, size / 2)):
            turned = of.affine[i].astype(np.float64) @ (2 * output[0] / size - 1, 2 * output[1] / size - 1, 1)
            stored = np.array([x + (turned[0] + 1) / 2 * width, y + (turned[1] + 1) / 2 * height])
            sampled = sampling.matrix[i] @ (*output, 1)
            np.testing.assert_allclose((sampled + sampling.region[i, :2]) * sampling.reduction[i], stored, atol=1e-6)
            centred = sampling.centred_matrix()[i] @ (output[0] - 0.5, output[1] - 0.5, 1)
            np.testing.assert_allclose(centred, sampled - 0.5, atol=1e-6)


def test_an_evaluated_frame_is_sampled_at_regular_steps() -> None:
    whole = Frames.of({"width": np.array([512]), "height": np.array([448])}, head=False)
    sampling = Sampling.of(no_augmentation(whole, np.array([0])), 224)
    assert sampling.reduction.tolist() == [2]
    assert sampling.region.tolist() == [[0, 0, 256, 224]]
    np.testing.assert_allclose(sampling.matrix[0], [[256 / 224, 0, 0], [0, 1, 0]])


def test_brightness_and_contrast_are_a_table() -> None:
    of = decisions(0, 3)
    levels = np.arange(256)
    expected = of.gain[:, None].astype(np.float64) * levels + of.shift[:, None].astype(np.float64) * 255
    assert np.abs(brightness_tables(of) - expected.clip(0, 255)).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("size", [32, 224])
def test_without_augmentation_the_table_changes_nothing(size: int) -> None:
    of = no_augmentation(frames(5, 1), np.arange(5))
    assert (brightness_tables(of) == np.arange(256)).all()
