"""Registration finds cropped, shifted and rotated copies, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import draw
from PIL import Image

from brain_dist.collection.measures import head_and_thumbnails
from brain_dist.copies.registration import REGISTERED_THRESHOLD, moved_pairs
from brain_dist.copies.similarity import NearPairs, aligned_pairs

SIDE = 160
COUNT = 32  # originals: the descriptor is fitted to the images themselves and needs more than a few
CROPS = [(4, 12, 9, 14), (14, 3, 3, 8), (3, 3, 14, 14), (14, 14, 14, 14)]  # pixels: left, top, right, bottom; up to 9 %


def cropped(image: Image.Image, number: int) -> Image.Image:
    left, top, right, bottom = CROPS[number % len(CROPS)]
    return image.crop((left, top, SIDE - right, SIDE - bottom))


def shifted(image: Image.Image, number: int) -> Image.Image:
    """Shifted out of the frame by 5 to 7 % on two sides."""
    return image.transform((SIDE, SIDE), Image.Transform.AFFINE, (1, 0, 8 + number % 4, 0, 1, 8))


def rotated(image: Image.Image, number: int) -> Image.Image:
    return image.rotate(3 if number % 2 else -3, Image.Resampling.BICUBIC)


def mirrored_and_cropped(image: Image.Image, number: int) -> Image.Image:
    return cropped(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), number)


def full(number: int) -> Image.Image:
    """An image whose head fills the frame, so that cropping removes part of the head."""
    image = draw(number, 224)
    x, y, width, height = head_and_thumbnails(np.asarray(image))[0]
    return image.crop((x, y, x + width, y + height)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def thumbs_of(images: list[Image.Image]) -> np.ndarray:
    return np.stack([head_and_thumbnails(np.asarray(image))[1] for image in images])


def as_tuples(pairs: NearPairs) -> list[tuple[int, int]]:
    return list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


@pytest.mark.parametrize("change", [cropped, shifted, rotated, mirrored_and_cropped])
def test_finds_moved_copies_and_no_other_pairs(change):
    originals = [full(number) for number in range(COUNT)]
    thumbs = thumbs_of([*originals, *(change(image, number) for number, image in enumerate(originals))])
    pairs = moved_pairs(thumbs[:, 1], np.arange(2 * COUNT))
    assert set(as_tuples(pairs)) <= {(number, number + COUNT) for number in range(COUNT)}
    assert len(pairs.first) >= COUNT - 2
    assert (pairs.similarity >= REGISTERED_THRESHOLD).all()
    assert (pairs.similarity <= 1 + 1e-6).all()
    assert (pairs.mirrored == (change is mirrored_and_cropped)).all()
    if change is not rotated:
        assert len(aligned_pairs(thumbs).first) < COUNT / 4, "most of these copies are not aligned"


def test_image_order_does_not_matter():
    originals = [full(number) for number in range(COUNT)]
    copies = [
        (cropped, rotated, mirrored_and_cropped)[number % 3](image, number) for number, image in enumerate(originals)
    ]
    heads = thumbs_of([*originals, *copies])[:, 1]
    order = np.random.default_rng(0).permutation(len(heads))
    straight, shuffled = (moved_pairs(subset, np.arange(len(heads))) for subset in (heads, heads[order]))
    assert len(straight.first) == COUNT
    assert set(as_tuples(straight)) == {
        (min(a, b), max(a, b)) for a, b in order[np.array(as_tuples(shuffled))].tolist()
    }
    assert all(first < second for first, second in as_tuples(straight))
    assert as_tuples(straight) == sorted(as_tuples(straight))


def test_skips_pairs_that_are_already_joined():
    images = [full(0), full(1), cropped(full(0), 0), cropped(full(1), 1)]
    heads = thumbs_of(images)[:, 1]
    assert as_tuples(moved_pairs(heads, np.arange(4))) == [(0, 2), (1, 3)]
    assert as_tuples(moved_pairs(heads, np.array([0, 1, 0, 3]))) == [(1, 3)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_collections_of_few_images(count):
    heads = thumbs_of([full(number) for number in range(count)])[:, 1]
    assert as_tuples(moved_pairs(heads, np.arange(count))) == []


def test_two_images_that_are_copies():
    heads = thumbs_of([full(0), cropped(full(0), 1)])[:, 1]
    assert as_tuples(moved_pairs(heads, np.arange(2))) == [(0, 1)]


def test_flat_images_have_no_copies():
    heads = np.zeros((5, 64, 64), dtype=np.uint8)
    heads[1:3] = [[[90]], [[200]]]
    heads[3:] = thumbs_of([full(1), full(2)])[:, 1]
    for subset in (heads, heads[:3]):
        assert as_tuples(moved_pairs(subset, np.arange(len(subset)))) == []


def test_progress_ends_at_the_total():
    calls: list[tuple[int, int]] = []
    moved_pairs(thumbs_of([full(0), full(1)])[:, 1], np.arange(2), progress=lambda *call: calls.append(call))
    assert calls[-1][0] == calls[-1][1] >= 1
