"""Copies are found, different heads are not joined, and groups are the connected components of the links."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import draw
from PIL import Image, ImageEnhance, ImageFilter

from brain_dist.collection.measures import are_blank, head_and_thumbnails
from brain_dist.collection.pixels import examine
from brain_dist.copies import search, similarity

ROUNDING = 1e-4  # of similarities: structures are stored as float16


def thumbs_of(images: list[Image.Image]) -> np.ndarray:
    return np.stack([head_and_thumbnails(np.asarray(image))[1] for image in images])


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("L")


def padded(image: Image.Image) -> Image.Image:
    canvas = Image.new("L", (image.width + 60, image.height + 20))
    canvas.paste(image, (10, 5))
    return canvas


def head_only(image: Image.Image) -> Image.Image:
    x, y, width, height = head_and_thumbnails(np.asarray(image))[0]
    return image.crop((x, y, x + width, y + height))


COPIES = {
    "JPEG of quality 30": lambda image: jpeg(image, 30),
    "smaller": lambda image: image.resize((80, 80), Image.Resampling.BILINEAR),
    "other aspect ratio": lambda image: image.resize((160, 90)),
    "half as bright": lambda image: image.point(lambda value: value // 2),
    "brighter, clipped": lambda image: image.point(lambda value: min(255, value * 3 // 2)),
    "gamma 0.6": lambda image: image.point(lambda value: round(255 * (value / 255) ** 0.6)),
    "gamma 1.6": lambda image: image.point(lambda value: round(255 * (value / 255) ** 1.6)),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.6),
    "sharpened": lambda image: image.filter(ImageFilter.UnsharpMask(3, 200, 0)),
    "cropped to the head": head_only,
    "padded": padded,
}


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("mirrored", [False, True])
def test_finds_copies_and_no_other_pairs(kind, mirrored):
    originals = [draw(number, 160) for number in range(12)]
    copies = [COPIES[kind](image) for image in originals]
    if mirrored:
        copies = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in copies]
    pairs = search.near_pairs(thumbs_of([*originals, *copies]))
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(n, n + 12) for n in range(12)]
    assert (pairs.mirrored == mirrored).all()
    assert not pairs.moved.any()  # all of these copies are aligned


def test_candidate_search_misses_nothing(monkeypatch):
    images = [draw(number, 96) for number in range(60)]
    images += [image.rotate(angle, Image.Resampling.BILINEAR) for image in images[:20] for angle in (1, 2, 3, 5)]
    images += [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(1) for image in images[:10]]
    thumbs = thumbs_of(images)
    monkeypatch.setattr(similarity, "_BLOCK", 32)  # several blocks, the last one partly filled
    monkeypatch.setattr(similarity, "_BASIS", 8)
    pairs = similarity.aligned_pairs(thumbs)
    best = np.full((len(images), len(images)), -1.0)
    for frame in range(2):
        straight = similarity.structure(thumbs[:, frame])
        for other in (straight, similarity.structure(thumbs[:, frame, :, ::-1])):
            best = np.maximum(best, straight @ other.T)
    certain, possible = (
        np.argwhere(np.triu(best >= similarity.ALIGNED_THRESHOLD + margin, 1)).tolist()
        for margin in (ROUNDING, -ROUNDING)
    )
    ends = np.stack([pairs.first, pairs.second], axis=1).tolist()
    assert 30 < len(certain) < 500
    assert [pair for pair in ends if pair in certain] == certain
    assert [pair for pair in possible if pair in ends] == ends
    np.testing.assert_allclose(pairs.similarity, best[pairs.first, pairs.second], atol=ROUNDING)


def test_flat_images_have_no_copies():
    thumbs = np.zeros((4, 2, 64, 64), dtype=np.uint8)
    thumbs[1] = 200
    thumbs[2:] = thumbs_of([draw(1), draw(2)])
    assert len(search.near_pairs(thumbs)) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_connected_gives_the_smallest_reachable_element(case):
    count, links = case
    smallest = list(range(count))
    for _ in range(count):
        for one, other in links:
            smallest[one] = smallest[other] = min(smallest[one], smallest[other])
    components = search.connected(count, links)
    assert components.tolist() == smallest
    assert components.dtype == np.int64
    np.testing.assert_array_equal(search.connected(count, np.array(links, dtype=int).reshape(-1, 2)), components)


def test_groups_join_patients_and_copies_but_not_equal_names_of_two_datasets():
    images = [draw(n, 128) for n in (0, 1, 2, 3, 4, 5)]
    images += [images[0], ImageEnhance.Brightness(images[1]).enhance(0.7), draw(6, 128)]
    hashes = [examine(png(image)).pixel_hash for image in images]
    patients = [
        ("x", "p"),
        ("x", "q"),
        ("x", "q"),
        ("x", None),
        ("y", "p"),
        ("y", None),
        ("x", None),
        ("y", "p"),
        ("y", None),
    ]
    findings = search.find_copies(thumbs_of(images), hashes, patients)
    np.testing.assert_array_equal(findings.copy_of, [0, 1, 2, 3, 4, 5, 0, 7, 8])
    assert list(zip(findings.near.first, findings.near.second, strict=True)) == [(1, 7)]
    np.testing.assert_array_equal(findings.groups, [0, 1, 1, 3, 1, 5, 0, 1, 8])


def test_blank_images_are_not_copies_of_each_other():
    noise = np.random.default_rng(0).integers(0, 6, (128, 128), dtype=np.uint8)
    blank = [Image.new("L", (128, 128)), Image.new("L", (128, 128)), Image.new("L", (96, 128), 200)]
    blank += [Image.fromarray(noise), jpeg(Image.fromarray(noise), 50)]
    dot = Image.new("L", (128, 128))
    dot.paste(255, (60, 60, 62, 62))  # little, but not nothing
    images = [*blank, draw(1, 128), draw(1, 128), dot, dot]
    hashes = [examine(png(image)).pixel_hash for image in images]
    assert are_blank(thumbs_of(images)).tolist() == [True] * 5 + [False] * 4
    findings = search.find_copies(thumbs_of(images), hashes, [("x", None)] * len(images))
    np.testing.assert_array_equal(findings.copy_of, [0, 1, 2, 3, 4, 5, 5, 7, 7])
    np.testing.assert_array_equal(findings.groups, findings.copy_of)


@pytest.mark.parametrize("pictures", [[], [draw(1, 128)]])
def test_fewer_than_two_pictures_have_no_copies(pictures):
    images = [Image.new("L", (128, 128), level) for level in (0, 7, 200)] + pictures
    hashes = [examine(png(image)).pixel_hash for image in images]
    findings = search.find_copies(thumbs_of(images), hashes, [("x", None)] * len(images))
    assert len(findings.near) == 0
    np.testing.assert_array_equal(findings.groups, np.arange(len(images)))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_counts_combine_exact_and_near_copies():
    # 0 and 1 are exact copies, 2 is a near copy of 0 (and so of 1), 3 and 4 share a patient, 5 has no copies
    near = similarity.NearPairs(*(np.array([value]) for value in (0, 2, np.float32(0.9), True, False)))
    copy_of = np.array([0, 0, 2, 3, 4, 5])
    groups = np.array([0, 0, 0, 3, 3, 5])
    patients = [("d", None), ("d", None), ("d", None), ("d", "p"), ("d", "p"), ("d", "q")]
    labels = np.array([0, 0, 1, 2, 2, 3])

    def count(*splits: int) -> dict[str, object]:
        return search.counts(search.Findings(copy_of, near, groups), labels, patients, np.array(splits))

    kept = count(0, 0, 0, 2, 2, 1)
    assert kept["test_leaked"] == kept["test_with_copy_in_train"] == kept["test_with_patient_in_train"] == 0
    assert (kept["exact_redundant"], kept["near_pairs"], kept["near_pairs_mirrored"]) == (1, 1, 1)
    assert kept["images_with_label_conflict"] == 3
    assert kept["largest_groups"] == [3, 2, 1]
    leaky = count(2, 2, 0, 0, 2, 1)  # 1 leaks because its exact copy has a near copy in train
    assert (leaky["test_with_copy_in_train"], leaky["test_with_patient_in_train"], leaky["test_leaked"]) == (2, 1, 3)
    assert count(1, 2, 1, 1, 2, 0)["test_leaked"] == 0


def test_real_data_copies_are_joined_and_patients_are_not(real_data):
    with (real_data / "cheng" / "patients.csv").open() as file:
        rows = list(csv.DictReader(file))[::12]
    cheng = [examine((real_data / "cheng" / row["class"] / f"{row['id']}.jpg").read_bytes()) for row in rows]
    pairs = search.near_pairs(np.stack([image.thumbs for image in cheng]))
    assert all(rows[a]["patient"] == rows[b]["patient"] for a, b in zip(pairs.first, pairs.second, strict=True))

    br35h = [examine(path.read_bytes()) for path in sorted((real_data / "br35h_no" / "notumor").iterdir())[::6]]
    thumbs = np.stack([image.thumbs for image in br35h])

    def count_sets(threshold: float) -> int:
        pairs = similarity.aligned_pairs(thumbs, threshold=threshold)
        return len(np.unique(search.connected(len(br35h), np.column_stack([pairs.first, pairs.second]))))

    sets = count_sets(similarity.ALIGNED_THRESHOLD)
    assert sets < 0.6 * len(br35h)  # many images are renderings of one picture
    assert sets - count_sets(0.70) <= 2  # lower thresholds give nearly the same sets
