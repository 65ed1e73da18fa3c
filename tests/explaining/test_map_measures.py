"""Measures of maps: values computed by hand, and what references reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brain_dist.explaining import references
from brain_dist.explaining.images import spread
from brain_dist.explaining.measure import Measured
from brain_dist.explaining.measures import LOCATION, energy_inside, iou_at_area, pointing_game, rank_accuracy
from brain_dist.explaining.perturbation import STEPS, insertion_deletion, ranks
from brain_dist.explaining.sanity import spearman, ssim
from brain_dist.explaining.summary import cluster_means, summarise
from brain_dist.explaining.tables import difference_text, interval_text
from brain_dist.judging.predictions import Predictions

CORNER = np.zeros((4, 4), dtype=bool)
CORNER[:2, :2] = True
FALLING = np.arange(15, -1, -1, dtype=np.float32).reshape(4, 4)  # 15 14 13 12 / 11 10 9 8 / …


def test_values_by_hand() -> None:
    assert pointing_game(FALLING, CORNER) == 1
    assert pointing_game(FALLING[::-1, ::-1], CORNER) == 0
    assert energy_inside(FALLING, CORNER) == pytest.approx((15 + 14 + 11 + 10) / 120)
    assert rank_accuracy(FALLING, CORNER) == 2 / 4  # 15 and 14 of 15, 14, 13, 12
    assert iou_at_area(FALLING, CORNER) == pytest.approx(2 / 6)
    assert [of(CORNER.astype(np.float32), CORNER) for of in LOCATION.values()] == [1, 1, 1, 1]
    assert [of(1.0 - CORNER, CORNER) for of in LOCATION.values()] == [0, 0, 0, 0]


def test_equal_values_share_what_any_order_would_give() -> None:
    for heat in (np.zeros((4, 4)), np.full((4, 4), 0.3)):
        assert [of(heat, CORNER) for of in LOCATION.values()] == pytest.approx([0.25, 0.25, 0.25, 0.25 / 1.75])
    two = np.zeros((4, 4))
    two[0, 0] = two[3, 3] = 1
    assert pointing_game(two, CORNER) == 0.5
    # of the four largest, (0, 0) and (3, 3) are certain; the other two come from 14 equal ones, 3 of them in the corner
    assert rank_accuracy(two, CORNER) == pytest.approx((1 + 2 * 3 / 14) / 4)


def test_references() -> None:
    assert (references.uniform(4) == 1).all()
    centre = references.centre(5)
    assert np.unravel_index(centre.argmax(), (5, 5)) == (2, 2)
    assert centre[2, 0] / centre[2, 2] == pytest.approx(np.exp(-((0.4 / 0.25) ** 2) / 2))
    np.testing.assert_array_equal(centre, centre[::-1, ::-1].T)
    mean = references.mean_tumour(np.stack([CORNER, ~CORNER, CORNER]))
    np.testing.assert_allclose(mean[:2, 1:3], [[2 / 3, 1 / 3]] * 2, rtol=1e-6)
    step = np.zeros((6, 6), dtype=np.uint8)
    step[:, 3:] = 100
    spot = np.zeros((128, 128), dtype=np.uint8)
    spot[40, 70] = 255
    bright = references.brightness(spot)
    assert np.unravel_index(bright.argmax(), spot.shape) == (40, 70)
    assert bright.sum() == pytest.approx(255, rel=1e-3)
    assert bright[40, 70] == pytest.approx(255 / (8 * np.pi), rel=0.01)  # a standard deviation of 2 pixels
    np.testing.assert_array_equal(references.edges(step), np.tile([0, 0, 400, 400, 0, 0], (6, 1)))


def test_insertion_and_deletion_by_hand() -> None:
    """The same curves, one image at a time."""
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.normal(size=(2, 64)).astype(np.float32))
    image = torch.from_numpy(rng.normal(size=(1, 8, 8)).astype(np.float32))
    heats = np.stack([rng.random((8, 8)), np.ones((8, 8)), FALLING.repeat(2, 0).repeat(2, 1)])

    def model(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ weight.T

    from scipy import ndimage

    background = ndimage.gaussian_filter(image.numpy(), (0, 1, 1))
    result = insertion_deletion(model, image, heats, 1, seed=3, micro_batch=7)
    for places, values in zip(ranks(heats, 3), result, strict=True):
        curves: dict[bool, list[float]] = {True: [], False: []}
        for step in range(STEPS + 1):
            first = places < step * 64 / STEPS
            for inserted, curve in curves.items():
                mixed = np.where(first == inserted, image.numpy(), background)
                logits = model(torch.from_numpy(mixed.astype(np.float32))[None])
                curve.append(float(logits.softmax(1)[0, 1]))
        assert values == pytest.approx(
            [np.trapezoid(curves[True], dx=1 / 32), np.trapezoid(curves[False], dx=1 / 32)], abs=1e-6
        )


def test_a_constant_image_has_flat_curves() -> None:
    weight = torch.tensor([[0.0], [2.0]])
    result = insertion_deletion(
        lambda images: images.mean((1, 2, 3))[:, None] @ weight.T,
        torch.ones(1, 16, 16),
        np.random.rand(2, 16, 16),
        1,
        seed=0,
    )
    assert result == pytest.approx(np.full((2, 2), 1 / (1 + np.exp(-2))))


def test_ranks_are_a_permutation_and_break_ties_by_the_seed() -> None:
    heats = np.stack([FALLING, np.ones((4, 4))])
    first, again, other = ranks(heats, 0), ranks(heats, 0), ranks(heats, 1)
    np.testing.assert_array_equal(first, again)
    assert first[0].ravel().tolist() == list(range(16))
    assert sorted(first[1].ravel()) == list(range(16))
    assert (first[1] != other[1]).any()


def test_similarity_of_maps() -> None:
    assert spearman(FALLING, FALLING**3) == pytest.approx(1)
    assert spearman(FALLING, -FALLING) == pytest.approx(-1)
    assert np.isnan(spearman(FALLING, np.ones((4, 4))))
    image = np.random.default_rng(0).random((32, 32))
    assert ssim(image, image) == pytest.approx(1)
    assert ssim(image, 1 - image) < 0


def test_as_many_groups_as_possible() -> None:
    group = np.array(["a", "a", "a", "b", "c", "c"], dtype=object)
    assert spread(group, 3).tolist() == [0, 3, 4]
    assert spread(group, 5).tolist() == [0, 1, 3, 4, 5]
    assert spread(group, 99).tolist() == [0, 1, 2, 3, 4, 5]


def test_means_count_images_and_resample_groups() -> None:
    """12 groups of different size: the mean is over images, and an interval over groups is wider than over images."""
    rng = np.random.default_rng(0)
    sizes = np.arange(1, 13)
    cluster = np.repeat(np.arange(12), sizes)
    values = rng.random(12)[cluster] + 0.01 * rng.random(len(cluster))
    means = cluster_means(values[:, None], cluster)
    assert means.estimate[0] == pytest.approx(values.mean())
    np.testing.assert_allclose(means.jackknife[:, 0], [values[cluster != k].mean() for k in range(12)])
    assert means.values[:, 0].std() > 2 * values.std() / np.sqrt(len(values))


def test_a_map_that_never_hits_may_hit_in_other_patients() -> None:
    """0 of 12 groups is Wilson's 0 to 0.242, not 0 to 0: no resample has a spread, and other patients may differ."""
    groups = np.array([f"p{number:02d}" for number in range(12)], dtype=object)
    prob = np.full((12, 2), 0.5, np.float32)
    table = Predictions(
        np.arange(12), groups, groups, groups, groups, groups, np.zeros(12, np.int64), prob, np.log(prob), ("a", "b"),
        "run", 1, "", "",
    )  # fmt: skip
    values = np.zeros((12, 3, 1))
    values[:, 2, 0] = np.linspace(0.05, 0.3, 12)  # shares of the area
    measured = Measured(
        table=table, masks=np.ones((12, 4, 4), dtype=bool), images=np.zeros((12, 4, 4), np.uint8),
        methods={"gradcam": "a layer"}, maps={"gradcam": np.ones((12, 4, 4), np.float32)},
        sources=[("gradcam", "trained"), ("gradcam", "untrained"), ("uniform", "reference")],
        measures=["pointing game"], values=values, cascade={"gradcam": [{"random": 1.0, "spearman": 0.0, "ssim": 0.0}]},
        completeness=None,
    )  # fmt: skip
    summary = summarise(measured)
    result = summary["measures"]["pointing game"]["methods"]["gradcam"]
    assert result["interval"] == pytest.approx([0, 0.242494], abs=1e-6)
    assert interval_text(result) == "0.00 to 0.24 (Wilson)"
    # a difference of 0 in all of 12 groups: in other patients as many, of 0.242, may have any from -1 to 1
    assert result["minus"]["untrained"]["interval"] == pytest.approx([-0.242494, 0.242494], abs=1e-6)
    assert difference_text(result["minus"]["untrained"]) == "(+0.00)"
    low, high = result["minus"]["uniform"]["interval"]
    assert -0.3 < low < -0.175 < high < -0.05
    assert summary["verdicts"]["gradcam"]["better"] is False
