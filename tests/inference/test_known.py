"""Evaluation on other shards and on a published split: images that training knew are found and reported apart."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import TINY, launch, verb
from pictures import CLASSES, draw, write_collection
from PIL import Image, ImageEnhance

from brain_dist import report
from brain_dist.common.progress import no_progress
from brain_dist.inference.known import NEAR_COPY, SAME_GROUP, SAME_PATIENT, SAME_PIXELS, known_images, known_within
from brain_dist.judging.predictions import read_predictions
from brain_dist.shard import main
from brain_dist.store.dataset import Dataset, open_dataset


def source_of(dataset: Dataset, split: str, label: int, skip: int = 0) -> tuple[Path, str]:
    """File and patient of an image of a split and class."""
    columns = dataset.columns
    row = np.flatnonzero((columns["split"] == split) & (columns["label"] == label))[skip]
    return dataset.root.parent / "images" / columns["source"][row], columns["patient"][row]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards ``own``, a run on them, and the shards ``other`` with images of known and of unknown origin."""
    base = tmp_path_factory.mktemp("known")
    write_collection(base / "images")
    halves = ["--fractions", "0.5,0.25,0.25", "--workers", "1"]
    assert main(["build", "--source", str(base / "images"), "--out", str(base / "own"), *halves]) == 0
    own = open_dataset(base / "own")
    # a dataset is called after its folder, and the same patient of two datasets would be two patients
    other, table = base / "elsewhere" / "images", ["id,patient"]

    def add(label: int, name: str, image: Image.Image, patient: str = "") -> None:
        path = other / CLASSES[label] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        table.append(f"{name},{patient}")

    for label in range(4):
        trained, patient = source_of(own, "train", label)
        add(label, f"pixels{label}", Image.open(trained))
        another, _ = source_of(own, "train", label, skip=1)
        add(label, f"near{label}", ImageEnhance.Brightness(Image.open(another)).enhance(0.7))
        add(label, f"patient{label}", draw(9000 + label), patient)
        validated, _ = source_of(own, "val", label)
        add(label, f"group{label}a", ImageEnhance.Brightness(Image.open(validated)).enhance(0.7), f"new{label}")
        add(label, f"group{label}b", draw(9100 + label), f"new{label}")
        tested, _ = source_of(own, "test", label)
        add(label, f"test{label}", Image.open(tested))
        add(label, f"new{label}", draw(9200 + label), f"other{label}")
        add(label, f"fresh{label}", draw(9300 + label), f"another{label}")
    (other / "patients.csv").write_text("\n".join(table) + "\n")
    arguments = ["--source", str(other), "--fractions", "0.5,0,0.5", "--workers", "1"]
    assert main(["build", "--out", str(base / "other"), *arguments]) == 0
    batch = [
        "--train.global_batch",
        "12",
        "--train.micro_batch",
        "12",
        "--train.epochs",
        "1",
        "--train.precision",
        "fp32",
    ]
    verb("train", *TINY, *batch, "--data.shards", str(base / "own"), "--run.dir", str(base), "--run.name", "run")
    return base


REASONS = {
    "pixels": SAME_PIXELS, "near": NEAR_COPY, "patient": SAME_PATIENT, "groupa": NEAR_COPY, "groupb": SAME_GROUP,
    "test": "", "new": "", "fresh": "",
}  # fmt: skip


def expected_reasons(names: np.ndarray) -> list[str]:
    """The reason for each image, such as ``near2`` or ``group2b``."""
    return [REASONS[re.sub(r"\d", "", name)] for name in names]


def test_each_reason_is_found(base: Path) -> None:
    own, other = open_dataset(base / "own"), open_dataset(base / "other")
    rows = np.arange(len(other))
    names = np.array([Path(source).stem for source in other.columns["source"]])
    assert known_images(own, other, rows, 1, no_progress).tolist() == expected_reasons(names)
    some = rows[::-3]
    assert known_images(own, other, some, 1, no_progress).tolist() == expected_reasons(names[some])


def evaluate(base: Path, *arguments: str, name: str = "other", expect: int = 0) -> tuple[str, dict[str, object]]:
    result = verb(
        "evaluate", str(base / "run"), "--shards", str(base / "other"), "--name", name, *arguments, expect=expect
    )
    file = base / "run" / "predictions" / f"{name}.json"
    return result.out + result.err, json.loads(file.read_text()) if expect == 0 else {}


def test_the_headline_is_about_unknown_images(base: Path) -> None:
    printed, metrics = evaluate(base)
    predictions = read_predictions(base / "run" / "predictions" / "other.parquet")
    other = open_dataset(base / "other")
    names = np.array([Path(source).stem for source in other.columns["source"][predictions.row]])
    assert predictions.known is not None
    assert predictions.known.tolist() == expected_reasons(names)
    assert predictions.row.tolist() == other.rows("test").tolist()  # every image is in the table
    unknown = predictions.known == ""
    assert 0 < unknown.sum() < len(predictions)
    assert metrics["n"] == unknown.sum() == len(predictions.headline)
    correct = predictions.predicted == predictions.label
    assert metrics["accuracy"] == pytest.approx(correct[unknown].mean())
    shards = metrics["training_knew"]
    assert (shards["compared"], shards["allow_known"]) == (True, False)
    assert sum(shards["reasons"].values()) == shards["known"]["n"] == (~unknown).sum()
    assert shards["known"]["accuracy"] == pytest.approx(correct[~unknown].mean())
    assert shards["all"]["accuracy"] == pytest.approx(correct.mean())
    assert f"training knew {(~unknown).sum()} of {len(predictions)} images" in printed
    assert "left out above" in printed
    assert report.main([str(base / "run"), "--name", "other"]) == 0
    page = (base / "run" / "report" / "index.html").read_text()
    assert "Images that training knew are left out." in page
    assert f'<b id="images">{unknown.sum()}</b>' in page


@pytest.mark.slow
def test_known_images_count_on_request(base: Path) -> None:
    printed, metrics = evaluate(base, "--allow-known", name="allowed")
    file = base / "run" / "predictions" / "allowed.parquet"
    assert metrics["n"] == len(read_predictions(file)) == len(open_dataset(base / "other").rows("test"))
    assert pq.read_schema(file).metadata[b"allow_known"] == b"true"
    assert metrics["training_knew"]["allow_known"] is True
    assert "counted above (--allow-known)" in printed
    assert report.main([str(base / "run"), "--name", "allowed"]) == 0
    assert "They count in all numbers on this page" in (base / "run" / "report" / "index.html").read_text()


def test_shards_that_training_knew_entirely_are_refused(base: Path) -> None:
    own = open_dataset(base / "own")
    for label in range(4):
        for skip in range(2):
            file, _ = source_of(own, "train", label, skip)
            path = base / "same" / CLASSES[label] / f"{skip}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.open(file).save(path)
    shards = base / "same-shards"
    arguments = ["--source", str(base / "same"), "--out", str(shards), "--fractions", "0.5,0,0.5", "--workers", "1"]
    assert main(["build", *arguments]) == 0
    result = verb("evaluate", str(base / "run"), "--shards", str(shards), "--name", "same", expect=2)
    assert "training knew all 4 images" in result.err
    assert "(4 same pixels)" in result.err
    assert "--allow-known" in result.err
    assert result.err.count("\n") == 1
    assert not (base / "run" / "predictions" / "same.parquet").exists()
    verb("evaluate", str(base / "run"), "--shards", str(shards), "--name", "same", "--allow-known")


@pytest.mark.slow
def test_several_ranks_agree(base: Path) -> None:
    evaluate(base, name="one")
    launch(2, "evaluate", str(base / "run"), "--shards", str(base / "other"), "--name", "two")
    one, two = (read_predictions(base / "run" / "predictions" / f"{name}.parquet") for name in ("one", "two"))
    assert one.known.tolist() == two.known.tolist()
    np.testing.assert_allclose(one.logit, two.logit, atol=1e-4)


def test_missing_training_shards_are_reported(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base / "run", tmp_path / "run")
    for name in ("config.yaml", "environment.json"):
        file = tmp_path / "run" / name
        file.write_text(file.read_text().replace(str(base / "own"), str(tmp_path / "gone")))
    result = verb("evaluate", str(tmp_path / "run"), "--shards", str(base / "other"), "--name", "other")
    assert "warning: could not look for training images among the evaluated ones: " in result.err
    assert str(tmp_path / "gone") in result.err
    metrics = json.loads((tmp_path / "run" / "predictions" / "other.json").read_text())
    assert metrics["training_knew"]["compared"] is False
    assert metrics["n"] == len(open_dataset(base / "other").rows("test"))
    assert report.main([str(tmp_path / "run"), "--name", "other"]) == 0
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "which was not checked: " in page
    assert str(tmp_path / "gone") in page


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards ``shards`` with a published split, some of whose test images training or validation know."""
    base = tmp_path_factory.mktemp("published")
    images, table = base / "images", ["id,patient"]

    def add(part: str, label: int, name: str, image: Image.Image, patient: str) -> None:
        path = images / part / CLASSES[label] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        table.append(f"{name},{patient}")

    for label in range(4):
        for part in ("train", "val"):
            for number in range(4):
                name = f"{part}{label}{number}"
                add(part, label, name, draw(hash_of(name)), name)
        add("test", label, f"pixels{label}", draw(hash_of(f"train{label}0")), "")
        near = ImageEnhance.Brightness(draw(hash_of(f"train{label}1"))).enhance(0.7)
        add("test", label, f"group{label}", near, "")
        add("test", label, f"patient{label}", draw(7000 + label), f"train{label}2")
        add("test", label, f"validated{label}", draw(7100 + label), f"val{label}0")
        add("test", label, f"fresh{label}", draw(7200 + label), f"fresh{label}")
    (images / "patients.csv").write_text("\n".join(table) + "\n")
    options = ["--split", "original", "--workers", "1"]
    assert main(["build", "--source", str(images), "--out", str(base / "shards"), *options]) == 0
    return base


def hash_of(name: str) -> int:
    """A seed for the picture of this name."""
    return int.from_bytes(name.encode()[-4:], "big") % 100_000


def test_a_published_split_is_compared_with_its_training(published: Path) -> None:
    dataset = open_dataset(published / "shards")
    rows = dataset.rows("test")
    names = [re.sub(r"\d", "", Path(source).stem) for source in dataset.columns["source"][rows]]
    expected = {"pixels": SAME_PIXELS, "group": SAME_GROUP, "patient": SAME_PATIENT, "validated": "", "fresh": ""}
    assert known_within(dataset, rows, selected=False).tolist() == [expected[name] for name in names]
    expected["validated"] = SAME_PATIENT
    assert known_within(dataset, rows, selected=True).tolist() == [expected[name] for name in names]
    for split in ("train", "val"):
        assert not any(known_within(dataset, dataset.rows(split), selected=True))


@pytest.mark.slow
def test_the_headline_of_a_published_split_is_about_unknown_images(published: Path) -> None:
    steps = [
        "--train.global_batch",
        "8",
        "--train.micro_batch",
        "8",
        "--train.epochs",
        "1",
        "--train.precision",
        "fp32",
    ]
    place = ["--data.shards", str(published / "shards"), "--run.dir", str(published), "--run.name", "run"]
    verb("train", *TINY, *steps, *place)
    selected = shutil.copytree(published / "run", published / "selected")
    settings = (selected / "config.yaml").read_text()
    (selected / "config.yaml").write_text(re.sub("(?m)^  best: null", "  best: accuracy", settings))
    numbers = {}
    for name, options in {
        "test": [str(published / "run")],
        "published": [str(published / "run"), "--name", "published", "--allow-known"],
        "selected": [str(selected), "--name", "selected"],
    }.items():
        printed = verb("evaluate", *options).out
        metrics = json.loads((Path(options[0]) / "predictions" / f"{name}.json").read_text())
        numbers[name] = metrics["n"]
        assert metrics["training_knew"]["all"]["n"] == 20
        assert f"training knew {metrics['training_knew']['known']['n']} of 20 images" in printed
    assert numbers == {"test": 8, "published": 20, "selected": 4}
    assert report.main([str(published / "run"), "--name", "test"]) == 0
    page = (published / "run" / "report" / "index.html").read_text()
    assert "Training knew 12 of 20 images" in page
