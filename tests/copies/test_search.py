"""Copies are found, strangers are not joined, and the groups are exactly what the links connect."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import draw
from PIL import Image, ImageEnhance, ImageFilter

from brain_dist.collection.pixels import examine, head_box, thumbnails
from brain_dist.copies import search, similarity

ROUNDING = 1e-4  # of similarities: structures are kept in 16 bits


def thumbs_of(images: list[Image.Image]) -> np.ndarray:
    return np.stack([thumbnails(image, head_box(np.asarray(image))) for image in images])


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("L")


def padded(image: Image.Image) -> Image.Image:
    canvas = Image.new("L", (image.width + 60, image.height + 20))
    canvas.paste(image, (10, 5))
    return canvas


def head_only(image: Image.Image) -> Image.Image:
    x, y, width, height = head_box(np.asarray(image))
    return image.crop((x, y, x + width, y + height))


COPIES = {
    "JPEG of quality 30": lambda image: jpeg(image, 30),
    "smaller": lambda image: image.resize((80, 80), Image.Resampling.BILINEAR),
    "other aspect ratio": lambda image: image.resize((160, 90)),
    "half as bright": lambda image: image.point(lambda value: value // 2),
    "brighter, cut off": lambda image: image.point(lambda value: min(255, value * 3 // 2)),
    "gamma 0.6": lambda image: image.point(lambda value: round(255 * (value / 255) ** 0.6)),
    "gamma 1.6": lambda image: image.point(lambda value: round(255 * (value / 255) ** 1.6)),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.6),
    "sharpened": lambda image: image.filter(ImageFilter.UnsharpMask(3, 200, 0)),
    "cut out to the head": head_only,
    "set in a larger frame": padded,
}


@pytest.mark.parametrize("what", COPIES)
@pytest.mark.parametrize("mirrored", [False, True])
def test_copies_are_found_and_strangers_are_not(what, mirrored):
    originals = [draw(number, 160) for number in range(12)]
    copies = [COPIES[what](image) for image in originals]
    if mirrored:
        copies = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in copies]
    found = search.near_pairs(thumbs_of([*originals, *copies]))
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(n, n + 12) for n in range(12)]
    assert (found.mirrored == mirrored).all()
    assert not found.moved.any()  # all of these lie on each other


def test_candidate_search_misses_nothing(monkeypatch):
    images = [draw(number, 96) for number in range(60)]
    images += [image.rotate(angle, Image.Resampling.BILINEAR) for image in images[:20] for angle in (1, 2, 3, 5)]
    images += [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(1) for image in images[:10]]
    thumbs = thumbs_of(images)
    monkeypatch.setattr(similarity, "_BLOCK", 32)  # several blocks, the last one not full
    monkeypatch.setattr(similarity, "_BASIS", 8)
    found = similarity.aligned_pairs(thumbs)
    best = np.full((len(images), len(images)), -1.0)
    for frame in range(2):
        straight = similarity.structure(thumbs[:, frame])
        for other in (straight, similarity.structure(thumbs[:, frame, :, ::-1])):
            best = np.maximum(best, straight @ other.T)
    pairs = np.stack([found.first, found.second], axis=1).tolist()
    sure, possible = (np.argwhere(np.triu(best >= search.SAME + slack, 1)).tolist() for slack in (ROUNDING, -ROUNDING))
    assert 30 < len(sure) < 500
    assert [pair for pair in pairs if pair in sure] == sure
    assert [pair for pair in possible if pair in pairs] == pairs
    np.testing.assert_allclose(found.similarity, best[found.first, found.second], atol=ROUNDING)


def test_flat_pictures_resemble_nothing():
    thumbs = np.zeros((4, 2, 64, 64), dtype=np.uint8)
    thumbs[1] = 200
    thumbs[2:] = thumbs_of([draw(1), draw(2)])
    assert len(search.near_pairs(thumbs)) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_connected_agrees_with_scipy(case):
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count, links = case
    ends = np.array(links, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(ends.shape[1]), tuple(ends)), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    first = {label: int(np.flatnonzero(labels == label)[0]) for label in labels.tolist()}
    np.testing.assert_array_equal(search.connected(count, links), [first[label] for label in labels.tolist()])


def test_groups_join_patients_and_copies_but_not_namesakes():
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
    found = search.find_copies(thumbs_of(images), hashes, patients)
    np.testing.assert_array_equal(found.copy_of, [0, 1, 2, 3, 4, 5, 0, 7, 8])
    assert list(zip(found.near.first, found.near.second, strict=True)) == [(1, 7)]
    np.testing.assert_array_equal(found.groups, [0, 1, 1, 3, 1, 5, 0, 1, 8])


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_counts_follow_exact_and_near_copies_through_each_other():
    # 0 and 1 are exact copies, 2 is a near copy of 0 (hence of 1), 3 and 4 share a patient, 5 is alone
    near = search.NearPairs(*(np.array([value]) for value in (0, 2, np.float32(0.9), True, False)))
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
    leaky = count(2, 2, 0, 0, 2, 1)  # 1 is known from train by way of its exact copy's near copy
    assert (leaky["test_with_copy_in_train"], leaky["test_with_patient_in_train"], leaky["test_leaked"]) == (2, 1, 3)
    assert count(1, 2, 1, 1, 2, 0)["test_leaked"] == 0


def test_real_strangers_stay_apart_and_real_copies_meet(real_data):
    with (real_data / "cheng" / "patients.csv").open() as file:
        rows = list(csv.DictReader(file))[::12]
    cheng = [examine((real_data / "cheng" / row["class"] / f"{row['id']}.jpg").read_bytes()) for row in rows]
    found = search.near_pairs(np.stack([image.thumbs for image in cheng]))
    assert all(rows[a]["patient"] == rows[b]["patient"] for a, b in zip(found.first, found.second, strict=True))

    br35h = [examine(path.read_bytes()) for path in sorted((real_data / "br35h_no" / "notumor").iterdir())[::6]]
    thumbs = np.stack([image.thumbs for image in br35h])
    sets = [len(np.unique(search.connected(len(br35h), zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))))
            for pairs in (similarity.aligned_pairs(thumbs, same=same) for same in (0.70, search.SAME))]  # fmt: skip
    assert sets[1] < 0.6 * len(br35h)  # many are renderings of one picture
    assert sets[1] - sets[0] <= 2  # and no threshold in between changes what is one
