"""The audit counts exactly what was planted, within and between collections, and lists every pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pictures import CLASSES, draw
from PIL import Image, ImageEnhance

from brain_dist.audit import survey as survey_module
from brain_dist.audit.counts import summary
from brain_dist.audit.survey import Source, Survey, pairs_table, survey_collections
from brain_dist.collection.examination import BadImages
from brain_dist.collection.recipes import default_recipe, parse_recipe
from brain_dist.common.progress import no_progress
from brain_dist.errors import UserError

MIRROR = Image.Transpose.FLIP_LEFT_RIGHT
BINARY = {
    "classes": ["notumor", "tumor"],
    "parts": [{"patients": {"file": "patients.csv", "id": "id", "patient": "who"}}],
}


def run_survey(*sources: Source, skip_bad: bool = False) -> Survey:
    return survey_collections(sources, workers=1, skip_bad=skip_bad, progress=no_progress)


def write(folder: Path, pictures: dict[str, Image.Image]) -> Source:
    """A collection of PNG files, so that equal images have equal pixels; described by its folders."""
    for name, picture in pictures.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return Source(folder.name, folder, default_recipe(folder))


def head(number: int) -> Image.Image:
    return draw(number, 128)


def darker(number: int, factor: float = 0.7) -> Image.Image:
    return ImageEnhance.Brightness(head(number)).enhance(factor)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    """``alpha`` has a training and a test split and no patients; ``beta`` has patients and two classes."""
    root = tmp_path_factory.mktemp("collections")
    train = {f"{kind}/{kind[0]}{n}": head(10 * row + n) for row, kind in enumerate(CLASSES) for n in range(4)}
    train["meningioma/m4"] = head(11).resize((100, 100))
    test = {
        "glioma/t0": head(0),
        "glioma/t1": darker(1),
        "glioma/t2": head(2).transpose(MIRROR),
        "glioma/t3": head(100),
        "meningioma/t0": head(10),
        "meningioma/t1": head(11),  # exact copy of m1, and a near copy of m4
        "meningioma/t2": head(20),  # exact copy of n0 with another label
        "notumor/t0": head(21).crop((27, 29, 101, 99)),  # cropped inside the head
        "pituitary/t0": head(130),
    }
    alpha = write(root / "alpha", {
        **{f"Training/{name}": picture for name, picture in train.items()},
        **{f"Testing/{name}": picture for name, picture in test.items()},
    })  # fmt: skip
    folder = root / "beta"
    write(folder, {
        "tumor/b0": head(0),
        "tumor/b1": darker(1, 0.5),
        "tumor/b2": head(3),
        "tumor/b3": head(100),
        "notumor/b4": darker(130),
        "notumor/b5": head(200),
        "notumor/b6": head(201),
    })  # fmt: skip
    (folder / "patients.csv").write_text("id,who\nb0,P1\nb1,P1\nb2,P2\nb3,P2\nb4,P3\nb5,P3\nb6,\n")
    return run_survey(alpha, Source("beta", folder, parse_recipe(BINARY, "the recipe")))


def test_counts_are_what_was_planted(planted):
    assert summary(planted) == {
        "collections": {
            "alpha": {
                "images": 26,
                "blank_images": 0,
                "exact_redundant": 4,
                "test_images": 9,
                "test_images_with_exact_train_copy": 4,
                "test_images_with_near_train_copy": 4,
                "test_images_with_any_train_copy": 7,
                "label_conflicts": 1,
                "groups": 18,
                "test_images_with_patient_in_train": None,
            },
            "beta": {
                "images": 7,
                "blank_images": 0,
                "exact_redundant": 0,
                "test_images": 0,
                "test_images_with_exact_train_copy": 0,
                "test_images_with_near_train_copy": 0,
                "test_images_with_any_train_copy": 0,
                "label_conflicts": 0,
                "groups": 4,
                "test_images_with_patient_in_train": 0,
            },
        },
        "between": {
            "alpha|beta": {
                "A": "alpha",
                "B": "beta",
                "exact_images_in_A": 4,  # both of 0, 3, 100
                "near_images_in_A": 3,  # both of 1, 130
                "any_images_in_A": 7,
                "exact_images_in_B": 3,
                "near_images_in_B": 2,
                "any_images_in_B": 5,
                "label_conflicts": 1,  # 130: pituitary, notumor; "tumor" agrees with glioma
                "test_images_of_A_whose_patient_is_in_train_of_A_through_B": 3,  # 0 and 1 of P1; 100 of P2 (3)
                "test_images_of_B_whose_patient_is_in_train_of_B_through_A": None,
            }
        },
        "thresholds": {"aligned": 0.8, "registered": 0.9},
        "skipped": [],
    }


def test_table_lists_every_pair(planted):
    rows = pairs_table(planted).to_pylist()
    listed = {(row["path_a"][:-4], row["path_b"][:-4]): row for row in rows}
    assert len(listed) == len(rows)
    near = {
        ("Testing/glioma/t1", "Training/glioma/g1"),
        ("Testing/glioma/t2", "Training/glioma/g2"),
        ("Testing/meningioma/t1", "Training/meningioma/m4"),
        ("Training/meningioma/m1", "Training/meningioma/m4"),  # a near copy of an image is one of its exact copies
        ("Testing/notumor/t0", "Training/notumor/n1"),
        ("Testing/glioma/t1", "tumor/b1"),
        ("Training/glioma/g1", "tumor/b1"),
        ("Testing/pituitary/t0", "notumor/b4"),
    }
    exact = {
        ("Testing/glioma/t0", "Training/glioma/g0"),
        ("Testing/meningioma/t0", "Training/meningioma/m0"),
        ("Testing/meningioma/t1", "Training/meningioma/m1"),
        ("Testing/meningioma/t2", "Training/notumor/n0"),
        ("Testing/glioma/t0", "tumor/b0"),
        ("Training/glioma/g0", "tumor/b0"),
        ("Training/glioma/g3", "tumor/b2"),
        ("Testing/glioma/t3", "tumor/b3"),
    }
    assert {pair for pair, row in listed.items() if row["kind"] == "exact"} == exact
    assert {pair for pair, row in listed.items() if row["kind"] == "near"} == near
    assert all(
        (row["similarity"] == 1) if pair in exact else (0.8 <= row["similarity"] <= 1) for pair, row in listed.items()
    )
    assert [pair for pair, row in listed.items() if row["mirrored"]] == [("Testing/glioma/t2", "Training/glioma/g2")]
    assert [pair for pair, row in listed.items() if row["moved"]] == [("Testing/notumor/t0", "Training/notumor/n1")]
    row = listed["Testing/pituitary/t0", "notumor/b4"]
    assert {key: value for key, value in row.items() if key[-2:] in ("_a", "_b")} == {
        "collection_a": "alpha", "path_a": "Testing/pituitary/t0.png", "split_a": "test", "label_a": "pituitary",
        "patient_a": None, "slice_a": None,
        "collection_b": "beta", "path_b": "notumor/b4.png", "split_b": None, "label_b": "notumor",
        "patient_b": "P3", "slice_b": None,
    }  # fmt: skip


def test_patients_in_training_and_test_of_one_collection(tmp_path):
    source = write(tmp_path / "own", {
        "train/glioma/a": head(1), "train/glioma/b": head(2), "train/glioma/c": head(3),
        "test/glioma/d": head(4), "test/glioma/e": head(5), "test/glioma/f": head(6),
    })  # fmt: skip
    (source.folder / "patients.csv").write_text("id,patient\na,1\nb,2\nc,\nd,1\ne,3\nf,\n")
    survey = run_survey(Source("own", source.folder, default_recipe(source.folder)))
    counts = summary(survey)["collections"]["own"]
    assert (counts["test_images_with_patient_in_train"], counts["groups"]) == (1, 5)
    assert counts["test_images_with_any_train_copy"] == 0


def test_crowd_of_exact_copies_does_not_change_the_counts(tmp_path, monkeypatch):
    crowd = {f"Testing/glioma/{n}": draw(1) for n in range(5)} | {f"Training/glioma/{n}": draw(1) for n in range(70)}
    crowd |= {
        "Training/pituitary/other": draw(1),
        "Testing/notumor/near": ImageEnhance.Brightness(draw(1)).enhance(0.7),
    }
    sources = write(tmp_path / "one", crowd), write(tmp_path / "two", {f"test/glioma/{n}": draw(1) for n in range(30)})
    sampled = run_survey(*sources)
    monkeypatch.setattr(survey_module, "CROWD", 10**6)
    complete = run_survey(*sources)
    assert len(sampled.first) < 1500 < len(complete.first) == 106 * 105 // 2 + 106
    assert summary(sampled) == summary(complete)
    counts = summary(sampled)
    assert counts["collections"]["one"]["test_images_with_any_train_copy"] == 6
    assert counts["collections"]["two"]["exact_redundant"] == 29
    assert counts["between"]["one|two"]["near_images_in_B"] == 30


@pytest.mark.parametrize("images", [1, 5])
def test_collection_without_copies(tmp_path, images):
    survey = run_survey(write(tmp_path / "clean", {f"glioma/{n}": head(n) for n in range(images)}))
    counts = summary(survey)
    assert counts["collections"]["clean"] == {
        "images": images, "blank_images": 0, "exact_redundant": 0, "test_images": 0,
        "test_images_with_exact_train_copy": 0, "test_images_with_near_train_copy": 0,
        "test_images_with_any_train_copy": 0, "label_conflicts": 0, "groups": images,
        "test_images_with_patient_in_train": None,
    }  # fmt: skip
    assert counts["between"] == {}
    table = pairs_table(survey)
    assert table.num_rows == 0
    assert {"path_a", "patient_b", "kind", "similarity", "mirrored", "moved"} <= set(table.column_names)


def test_blank_images_are_counted_and_not_copies(tmp_path):
    pictures = {f"{split}/glioma/{n}": Image.new("L", (96, 96)) for split in ("Training", "Testing") for n in range(2)}
    sources = [write(tmp_path / name, {**pictures, "Training/glioma/head": head(1)}) for name in ("one", "two")]
    counts = summary(run_survey(*sources))
    for collection in counts["collections"].values():
        assert (collection["images"], collection["blank_images"], collection["groups"]) == (5, 4, 5)
        assert collection["exact_redundant"] == collection["test_images_with_any_train_copy"] == 0
    assert counts["between"]["one|two"]["any_images_in_A"] == 1


def full(number: int) -> Image.Image:
    """An image whose head fills the frame, so that cropping removes part of the head."""
    return draw(number, 160).crop((25, 25, 135, 135)).resize((128, 128), Image.Resampling.BICUBIC)


def test_counts_do_not_depend_on_the_other_collections(tmp_path):
    """Which strongly cropped copies are found depends on all images that are compared."""
    rng = np.random.default_rng(0)

    def moved(number: int) -> Image.Image:
        left, top, right, bottom = (rng.uniform((0, 0, 104, 104), (24, 24, 128, 128))).astype(int).tolist()
        return full(number).crop((left, top, right, bottom)).rotate(rng.uniform(-6, 6), Image.Resampling.BICUBIC)

    pictures = {f"Training/glioma/{n}": full(n) for n in range(40)}
    first = write(tmp_path / "first", pictures | {f"Testing/glioma/{n}": moved(n) for n in range(40)})
    second = write(tmp_path / "second", {f"glioma/{n}": moved(n) for n in range(30)})
    others = write(tmp_path / "others", {f"notumor/{n}": full(n) for n in range(100, 350)})
    alone, two, three = run_survey(first), run_survey(first, second), run_survey(first, second, others)
    assert summary(alone)["collections"]["first"] == summary(two)["collections"]["first"]
    assert summary(two)["collections"]["first"] == summary(three)["collections"]["first"]
    assert summary(two)["collections"]["second"] == summary(three)["collections"]["second"]
    assert summary(two)["between"]["first|second"] == summary(three)["between"]["first|second"]
    assert 20 < summary(alone)["collections"]["first"]["test_images_with_near_train_copy"] < 40
    assert pairs_table(alone).num_rows == (two.collection[two.second] == 0).sum()


def test_damaged_files_are_listed_with_their_collection(tmp_path):
    sources = [write(tmp_path / name, {f"glioma/{n}": draw(n) for n in range(2)}) for name in ("one", "two")]
    for source in sources:
        (source.folder / "glioma" / "bad.png").write_bytes(b"")
    with pytest.raises(BadImages) as caught:
        run_survey(*sources)
    assert caught.value.files == [f"{name}: glioma/bad.png: is empty (0 bytes)" for name in ("one", "two")]
    survey = run_survey(*sources, skip_bad=True)
    assert summary(survey)["skipped"] == [
        {"collection": name, "source": "glioma/bad.png", "reason": "is empty (0 bytes)"} for name in ("one", "two")
    ]
    assert len(survey.path) == 4
    for path in (sources[1].folder / "glioma").glob("[01].png"):
        path.unlink()
    with pytest.raises(UserError, match=r"^two: no image at all is left: all of them are damaged; repair them"):
        run_survey(*sources, skip_bad=True)


def test_folders_are_checked_before_anything_is_decoded(tmp_path):
    good = write(tmp_path / "one", {"glioma/a": draw(1)})
    (tmp_path / "two" / "yes").mkdir(parents=True)
    Image.new("L", (64, 64)).save(tmp_path / "two" / "yes" / "a.png")
    stages: list[str] = []
    with pytest.raises(UserError, match=r"^two: the folder yes is not one of .*classes are \[notumor, tumor\]"):
        survey_collections(
            [good, Source("two", tmp_path / "two", default_recipe(tmp_path / "two"))],
            workers=1,
            skip_bad=False,
            progress=lambda stage, done, total: stages.append(stage),
        )
    assert stages == []
