"""Erasing fills a region from its surroundings; the control is the same region on the other side of the head."""

from __future__ import annotations

import numpy as np
import pytest

from brain_dist.explaining.erasing import control_region, erase, grow, mirror

ROWS, COLUMNS = np.mgrid[:96, :96]


def disc(x: float, y: float, radius: float) -> np.ndarray:
    return np.hypot(COLUMNS + 0.5 - x, ROWS + 0.5 - y) < radius


def head() -> np.ndarray:
    """A gray ramp in an ellipse about the column 50, on black."""
    inside = np.hypot((COLUMNS + 0.5 - 50) / 36, (ROWS + 0.5 - 48) / 44) < 1
    return np.where(inside, 80 + ROWS // 2 + COLUMNS // 3, 0).astype(np.uint8)


def test_a_lesion_vanishes_and_nothing_else_changes() -> None:
    healthy = head()
    lesion = disc(34, 40, 9)
    ill = np.where(lesion, 250, healthy).astype(np.uint8)
    region = grow(lesion, 2)
    filled = erase(ill, region)
    assert (filled == ill)[~region].all()
    assert np.abs(filled.astype(int) - healthy)[region].mean() < 4  # the lesion was about 130 brighter
    np.testing.assert_array_equal(erase(ill[None], region), filled[None])
    np.testing.assert_array_equal(erase(np.stack([ill] * 3), region), np.stack([filled] * 3))
    np.testing.assert_array_equal(erase(ill, np.zeros_like(region)), ill)
    ramp = np.tile(np.arange(20, 116, dtype=np.uint8), (96, 1))
    np.testing.assert_array_equal(erase(np.where(lesion, 200, ramp).astype(np.uint8), region), ramp)  # is harmonic
    corner = np.zeros_like(region)
    corner[:5, :7] = True
    assert set(erase(np.where(corner, 200, 90).astype(np.uint8), corner).ravel()) == {90}
    colours = np.stack([ill, healthy, 255 - ill])
    np.testing.assert_array_equal(erase(colours, region), [erase(channel, region) for channel in colours])


def test_a_grown_mask_has_a_margin_on_all_sides() -> None:
    point = np.zeros((9, 9), bool)
    point[4, 4] = True
    assert np.argwhere(grow(point, 1)).tolist() == [[3, 4], [4, 3], [4, 4], [4, 5], [5, 4]]
    assert grow(point, 2).sum() > 9


@pytest.mark.parametrize("midline", [48.0, 50.0, 47.5, 52.3])
def test_the_mirror_image_is_as_far_from_the_midline(midline: float) -> None:
    lesion = disc(34, 40, 9)
    opposite = mirror(lesion, midline)
    assert opposite.sum() == lesion.sum()
    assert np.argwhere(opposite)[:, 0].mean() == np.argwhere(lesion)[:, 0].mean()
    centre = [np.argwhere(mask)[:, 1].mean() + 0.5 for mask in (lesion, opposite)]
    assert abs(np.mean(centre) - midline) <= 0.5
    np.testing.assert_array_equal(mirror(opposite, midline), lesion)


def test_a_control_is_in_the_head_and_apart_from_the_lesion() -> None:
    image = head()
    control = control_region(image, disc(34, 40, 9), 50)
    np.testing.assert_array_equal(control, disc(66, 40, 9))
    assert control_region(image, disc(46, 40, 9), 50) == "overlap"
    assert control_region(image, disc(34, 40, 9), 62) == "outside"  # half of the control is in the air
    assert control_region(image, disc(20, 48, 5), 70) == "outside"  # and here it is not in the picture
