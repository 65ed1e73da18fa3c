"""Copies that are cut, shifted or turned are found by registration, others are not, in any order and number."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import draw
from PIL import Image

from brain_dist.collection.pixels import head_box, thumbnails
from brain_dist.copies.registration import REGISTERED, moved_pairs
from brain_dist.copies.similarity import Pairs, aligned_pairs

SIDE = 160
COUNT = 32  # of originals: what is compared is learned from the images themselves, and a handful teaches little
CUTS = [(4, 12, 9, 14), (14, 3, 3, 8), (3, 3, 14, 14), (14, 14, 14, 14)]  # pixels: left, top, right, bottom; up to 9 %


def cut(image: Image.Image, number: int) -> Image.Image:
    left, top, right, bottom = CUTS[number % len(CUTS)]
    return image.crop((left, top, SIDE - right, SIDE - bottom))


def shifted(image: Image.Image, number: int) -> Image.Image:
    """Pushed out of the frame on two sides by 5 to 7 %."""
    return image.transform((SIDE, SIDE), Image.Transform.AFFINE, (1, 0, 8 + number % 4, 0, 1, 8))


def turned(image: Image.Image, number: int) -> Image.Image:
    return image.rotate(3 if number % 2 else -3, Image.Resampling.BICUBIC)


def mirrored_and_cut(image: Image.Image, number: int) -> Image.Image:
    return cut(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), number)


def full(number: int) -> Image.Image:
    """A picture whose head fills the frame, so that a cut goes through it."""
    image = draw(number, 224)
    x, y, width, height = head_box(np.asarray(image))
    return image.crop((x, y, x + width, y + height)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def thumbs_of(images: list[Image.Image]) -> np.ndarray:
    return np.stack([thumbnails(image, head_box(np.asarray(image))) for image in images])


def pairs_of(found: Pairs) -> list[tuple[int, int]]:
    return list(zip(found.first.tolist(), found.second.tolist(), strict=True))


@pytest.mark.parametrize("change", [cut, shifted, turned, mirrored_and_cut])
def test_moved_copies_are_found_and_strangers_are_not(change):
    originals = [full(number) for number in range(COUNT)]
    thumbs = thumbs_of([*originals, *(change(image, number) for number, image in enumerate(originals))])
    found = moved_pairs(thumbs[:, 1], np.arange(2 * COUNT))
    assert set(pairs_of(found)) <= {(number, number + COUNT) for number in range(COUNT)}
    assert len(found.first) >= COUNT - 2
    assert (found.similarity >= REGISTERED).all()
    assert (found.similarity <= 1 + 1e-6).all()
    assert (found.mirrored == (change is mirrored_and_cut)).all()
    if change is not turned:
        assert len(aligned_pairs(thumbs).first) < COUNT / 4, "most of these do not lie on each other"


def test_the_order_of_the_images_does_not_matter():
    originals = [full(number) for number in range(COUNT)]
    copies = [(cut, turned, mirrored_and_cut)[number % 3](image, number) for number, image in enumerate(originals)]
    heads = thumbs_of([*originals, *copies])[:, 1]
    order = np.random.default_rng(0).permutation(len(heads))
    straight, shuffled = (moved_pairs(some, np.arange(len(heads))) for some in (heads, heads[order]))
    assert len(straight.first) == COUNT
    assert set(pairs_of(straight)) == {(min(a, b), max(a, b)) for a, b in order[np.array(pairs_of(shuffled))].tolist()}
    assert all(first < second for first, second in pairs_of(straight))
    assert pairs_of(straight) == sorted(pairs_of(straight))


def test_pairs_that_are_joined_already_are_not_looked_at():
    images = [full(0), full(1), cut(full(0), 0), cut(full(1), 1)]
    heads = thumbs_of(images)[:, 1]
    assert pairs_of(moved_pairs(heads, np.arange(4))) == [(0, 2), (1, 3)]
    assert pairs_of(moved_pairs(heads, np.array([0, 1, 0, 3]))) == [(1, 3)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_are_no_trouble(count):
    heads = thumbs_of([full(number) for number in range(count)])[:, 1]
    assert pairs_of(moved_pairs(heads, np.arange(count))) == []


def test_two_images_that_are_copies():
    heads = thumbs_of([full(0), cut(full(0), 1)])[:, 1]
    assert pairs_of(moved_pairs(heads, np.arange(2))) == [(0, 1)]


def test_flat_pictures_resemble_nothing():
    heads = np.zeros((5, 64, 64), dtype=np.uint8)
    heads[1:3] = [[[90]], [[200]]]
    heads[3:] = thumbs_of([full(1), full(2)])[:, 1]
    for some in (heads, heads[:3]):
        assert pairs_of(moved_pairs(some, np.arange(len(some)))) == []


def test_progress_ends_at_the_whole():
    told: list[tuple[int, int]] = []
    moved_pairs(thumbs_of([full(0), full(1)])[:, 1], np.arange(2), progress=lambda *step: told.append(step))
    assert told[-1][0] == told[-1][1] >= 1
