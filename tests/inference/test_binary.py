"""A run with several tumour classes, trained on folds: evaluated on its own fold, and on shards of two classes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, verb, without_progress
from scipy.special import softmax
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from brain_dist import report
from brain_dist.config import read
from brain_dist.errors import UserError
from brain_dist.explaining.cams import cam_maps
from brain_dist.inference.run import LoadedRun, load_run
from brain_dist.judging.evaluation import write_evaluation
from brain_dist.judging.predictions import Predictions, read_predictions
from brain_dist.ranks.world import discover
from brain_dist.shard import main
from brain_dist.store.dataset import open_dataset
from brain_dist.training.resume import resume_step, settings_to_match

FOLDERS = {"notumor": ["notumor"], "tumor": ["glioma", "meningioma", "pituitary"]}


def build_shards(images: Path, base: Path, name: str, classes: list[str], folders: dict[str, list[str]]) -> Path:
    """Shards of the phantoms with other classes."""
    patients = {"file": "patients.csv", "id": "id", "patient": "patient"}
    part = {"dataset": "phantom", "folders": folders, "patients": patients}
    (base / f"{name}.yaml").write_text(json.dumps({"name": name, "classes": classes, "parts": [part]}))
    arguments = ["--recipe", str(base / f"{name}.yaml"), "--source", str(images), "--out", str(base / name)]
    main(["build", *arguments, "--fractions", "0.5,0,0.5", "--workers", "1"])
    return base / name


@pytest.fixture(scope="module")
def base(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on four classes, tested on fold 1 of 4, and shards of the same phantoms with two classes."""
    base = tmp_path_factory.mktemp("binary")
    batch = ["--train.global_batch", "24", "--train.micro_batch", "24", "--train.epochs", "3", "--optim.lr", "3e-3"]
    images = phantom_shards.parent / "images"
    main(["build", "--source", str(images), "--out", str(base / "folds"), "--split", "kfold", "--folds", "4"])
    data = ["--data.shards", str(base / "folds"), "--data.fold", "1", "--run.dir", str(base), "--run.name", "run"]
    verb("train", *TINY, *batch, *data, "--train.precision", "fp32")
    build_shards(images, base, "binary", ["notumor", "tumor"], FOLDERS)
    build_shards(images, base, "swapped", ["tumor", "notumor"], FOLDERS)
    return base


def tumour_probability(loaded: LoadedRun, predictions: Predictions, shards: Path) -> np.ndarray:
    """[N] probability of a tumour for the images of ``predictions``, from the run's four classes."""
    row_of = {source: row for row, source in enumerate(loaded.dataset.columns["source"])}
    rows = [row_of[source] for source in open_dataset(shards).columns["source"][predictions.row]]
    prob = softmax(loaded.model(loaded.images(rows)).detach().numpy().astype(np.float64), axis=1)
    return prob.sum(axis=1) - prob[:, loaded.dataset.classes.index("notumor")]


def test_the_probabilities_of_the_tumours_are_added_up(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, shards = base / "run", base / "binary"
    result = verb("evaluate", str(run), "--shards", str(shards), "--name", "binary", "--allow-known")
    lines = [line for line in result.out.splitlines() if line.startswith("tumor:")]
    assert lines == ["tumor: the sum of the probabilities of glioma, meningioma, pituitary"]
    predictions, dataset = read_predictions(run / "predictions" / "binary.parquet"), open_dataset(shards)
    assert predictions.classes == dataset.classes == ("notumor", "tumor")
    assert np.array_equal(predictions.row, dataset.rows("test"))
    assert np.array_equal(predictions.label, dataset.columns["label"][predictions.row])
    tumour = tumour_probability(load_run(run), predictions, shards)
    np.testing.assert_allclose(predictions.prob[:, 1], tumour, atol=1e-5)
    np.testing.assert_allclose(predictions.prob[:, 0], 1 - tumour, atol=1e-5)
    np.testing.assert_allclose(softmax(predictions.logit.astype(np.float64), axis=1), predictions.prob, atol=1e-6)

    metrics = json.loads((run / "predictions" / "binary.json").read_text())
    true, predicted = predictions.label == 1, tumour > 0.5
    assert metrics["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert metrics["per_class"]["tumor"]["sensitivity"] == pytest.approx(recall_score(true, predicted))
    assert metrics["per_class"]["tumor"]["specificity"] == pytest.approx(recall_score(~true, ~predicted))
    assert metrics["per_class"]["tumor"]["auc"] == pytest.approx(roc_auc_score(true, tumour), abs=1e-5)

    assert report.main([str(run), "--name", "binary"]) == 0
    assert without_progress(capsys.readouterr().err) == "", "no note about missing images"
    assert "no tumour" in (run / "report" / "index.html").read_text()


@pytest.mark.slow
def test_a_run_is_evaluated_on_its_own_fold_and_resumes_on_no_other(base: Path, phantom_shards: Path) -> None:
    run, shards = base / "run", open_dataset(base / "folds")
    for own_shards in (None, str(base / "folds")):
        assert load_run(run, shards=own_shards).dataset.fold == 1
    loaded = load_run(run)
    write_evaluation(run / "predictions" / "test.parquet", loaded.predict("test"), loaded.dataset.rows("test"))
    predictions = read_predictions(run / "predictions" / "test.parquet")
    assert predictions.fold == 1
    assert np.array_equal(predictions.row, np.flatnonzero(shards.columns["split"] == "fold1"))
    assert set(predictions.split) == {"test"}
    assert report.main([str(run)]) == 0
    page = (run / "report" / "index.html").read_text()
    assert "tested on fold 1 of 4" in page
    assert "No leakage found." in page

    settings = read(run / "config.yaml")
    data = dataclasses.replace(settings.data, fold=2)
    other = settings_to_match(dataclasses.replace(settings, data=data), shards.version, 1)
    with pytest.raises(UserError, match=r"with data\.fold=1, now it is 2"):
        resume_step(settings, run / "checkpoints", other, discover({}))
    (base / "another.yaml").write_text(json.dumps({"name": "another", "parts": [{"ignore": ["masks"]}]}))
    images = ["--recipe", str(base / "another.yaml"), "--source", str(phantom_shards.parent / "images")]
    main(["build", *images, "--out", str(base / "another"), "--split", "kfold", "--folds", "3"])
    with pytest.raises(UserError, match="was built as folds, which other runs cannot use"):
        load_run(run, shards=str(base / "another"))


def test_the_two_classes_may_have_either_order(base: Path) -> None:
    run, shards = base / "run", base / "swapped"
    predictions = load_run(run, shards=str(shards)).predict("test")
    assert predictions.classes == ("tumor", "notumor")
    tumour = tumour_probability(load_run(run), predictions, shards)
    np.testing.assert_allclose(predictions.prob[:, 0], tumour, atol=1e-5)


def test_gradcam_works_for_the_merged_class(base: Path) -> None:
    loaded = load_run(base / "run", shards=str(base / "binary"))
    assert loaded.trained_classes == ("glioma", "meningioma", "notumor", "pituitary")
    images = torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    assert loaded.model(images).shape == (4, 2)
    maps = [cam_maps(loaded.model, images, [target] * 4, "gradcam") for target in (0, 1)]
    assert max(each.max() for each in maps) > 0.9
    assert not np.array_equal(*maps)


def test_other_classes_are_refused(base: Path, phantom_shards: Path) -> None:
    images = phantom_shards.parent / "images"
    other = build_shards(images, base, "other", ["glioma", "notumor"], {"glioma": ["glioma"], "notumor": ["notumor"]})
    result = verb("evaluate", str(base / "run"), "--shards", str(other), "--name", "other", expect=2)
    assert len(result.err.strip().splitlines()) == 1
    assert f"classes glioma, meningioma, notumor, pituitary, but {other} has glioma, notumor" in result.err
    assert "of the same classes in the same order, or shards of notumor and tumor" in result.err


def test_a_run_without_a_tumour_free_class_needs_its_own_classes(base: Path) -> None:
    file = base / "run" / "environment.json"
    text = file.read_text()
    try:
        classes = ["glioma", "meningioma", "schwannoma", "pituitary"]
        file.write_text(json.dumps(json.loads(text) | {"classes": classes}))
        with pytest.raises(UserError, match=r"of the same classes in the same order$"):
            load_run(base / "run", shards=str(base / "binary"))
    finally:
        file.write_text(text)


def test_a_run_of_two_classes_is_evaluated_on_several_tumours(base: Path, phantom_shards: Path) -> None:
    batch = ["--train.global_batch", "24", "--train.micro_batch", "24", "--train.epochs", "1"]
    data = ["--data.shards", str(base / "swapped"), "--run.dir", str(base), "--run.name", "two"]
    verb("train", *TINY, *batch, *data, "--train.precision", "fp32")
    folders = {name: [name] for name in ("glioma", "meningioma", "notumor", "pituitary")}
    four = build_shards(phantom_shards.parent / "images", base, "four", list(folders), folders)
    result = verb("evaluate", str(base / "two"), "--shards", str(four), "--name", "four", "--allow-known")
    assert "tumor: glioma, meningioma, pituitary" in result.out
    predictions, dataset = read_predictions(base / "two" / "predictions" / "four.parquet"), open_dataset(four)
    assert predictions.classes == ("tumor", "notumor")
    assert predictions.dataset_version == dataset.version
    names = np.array(dataset.classes, dtype=object)[dataset.columns["label"][predictions.row]]
    assert (names == "notumor").tolist() == (predictions.label == 1).tolist()
    own = load_run(base / "two")
    rows = {source: row for row, source in enumerate(own.dataset.columns["source"])}
    inputs = own.images([rows[source] for source in dataset.columns["source"][predictions.row]])
    np.testing.assert_allclose(own.model(inputs).detach().numpy(), predictions.logit, atol=1e-4)
    assert load_run(base / "two", shards=str(four)).dataset.manifest.counts["test"].keys() == {"tumor", "notumor"}
