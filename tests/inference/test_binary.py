"""A run on one fold that tells tumours apart: judged on that fold, and on shards that only know tumour or none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, verb
from scipy.special import softmax
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from brain_dist import report
from brain_dist.config import read
from brain_dist.errors import UserError
from brain_dist.inference.evaluate import evaluate
from brain_dist.inference.gradcam import gradcam
from brain_dist.inference.run import LoadedRun, load_run
from brain_dist.judging.predictions import Predictions, read_predictions
from brain_dist.ranks.world import discover
from brain_dist.shard import main
from brain_dist.store.dataset import open_dataset
from brain_dist.training.resume import resume_step, settings_to_match

FOLDERS = {"notumor": ["notumor"], "tumor": ["glioma", "meningioma", "pituitary"]}


def shards_of(images: Path, base: Path, name: str, classes: list[str], folders: dict[str, list[str]]) -> Path:
    """Shards of phantoms under other classes."""
    patients = {"file": "patients.csv", "id": "id", "patient": "patient"}
    part = {"dataset": "phantom", "folders": folders, "patients": patients}
    (base / f"{name}.yaml").write_text(json.dumps({"name": name, "classes": classes, "parts": [part]}))
    words = ["--recipe", str(base / f"{name}.yaml"), "--source", str(images), "--out", str(base / name)]
    main(["build", *words, "--fractions", "0.5,0,0.5", "--workers", "1"])
    return base / name


@pytest.fixture(scope="module")
def base(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on four classes, fold 1 of 4 its test part, and binary shards of the same phantoms."""
    base = tmp_path_factory.mktemp("binary")
    batch = ["--train.global_batch", "24", "--train.micro_batch", "24", "--train.epochs", "3", "--optim.lr", "3e-3"]
    images = phantom_shards.parent / "images"
    main(["build", "--source", str(images), "--out", str(base / "folds"), "--split", "kfold", "--folds", "4"])
    where = ["--data.shards", str(base / "folds"), "--data.fold", "1", "--run.dir", str(base), "--run.name", "run"]
    verb("train", *TINY, *batch, *where, "--train.precision", "fp32")
    shards_of(images, base, "binary", ["notumor", "tumor"], FOLDERS)
    shards_of(images, base, "swapped", ["tumor", "notumor"], FOLDERS)
    return base


def added_up(loaded: LoadedRun, found: Predictions, shards: Path) -> np.ndarray:
    """[N] P(tumour) of the judged pictures, from the run's own four classes."""
    by_source = {source: row for row, source in enumerate(loaded.dataset.columns["source"])}
    rows = [by_source[source] for source in open_dataset(shards).columns["source"][found.row]]
    prob = softmax(loaded.model(loaded.images(rows)).detach().numpy().astype(np.float64), axis=1)
    return prob.sum(axis=1) - prob[:, loaded.dataset.classes.index("notumor")]


def test_the_tumours_probabilities_are_added_up(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, shards = base / "run", base / "binary"
    done = verb("evaluate", str(run), "--shards", str(shards), "--name", "binary")
    said = [line for line in done.out.splitlines() if line.startswith("tumor:")]
    assert said == [
        "tumor: the sum of the probabilities of glioma, meningioma, pituitary, which these shards do not tell apart"
    ]
    found, dataset = read_predictions(run / "predictions" / "binary.parquet"), open_dataset(shards)
    assert found.classes == dataset.classes == ("notumor", "tumor")
    assert np.array_equal(found.row, dataset.rows("test"))
    assert np.array_equal(found.label, dataset.columns["label"][found.row])
    tumour = added_up(load_run(run), found, shards)
    np.testing.assert_allclose(found.prob[:, 1], tumour, atol=1e-5)
    np.testing.assert_allclose(found.prob[:, 0], 1 - tumour, atol=1e-5)
    np.testing.assert_allclose(softmax(found.logit.astype(np.float64), axis=1), found.prob, atol=1e-6)

    told = json.loads((run / "predictions" / "binary.json").read_text())
    ill, said_ill = found.label == 1, tumour > 0.5
    assert told["accuracy"] == pytest.approx(accuracy_score(ill, said_ill))
    assert told["per_class"]["tumor"]["sensitivity"] == pytest.approx(recall_score(ill, said_ill))
    assert told["per_class"]["tumor"]["specificity"] == pytest.approx(recall_score(~ill, ~said_ill))
    assert told["per_class"]["tumor"]["auc"] == pytest.approx(roc_auc_score(ill, tumour), abs=1e-5)

    assert report.main([str(run), "--name", "binary"]) == 0
    assert capsys.readouterr().err == "", "no note that pictures are missing"
    assert "no tumour" in (run / "report" / "index.html").read_text()


def test_a_run_is_judged_on_its_own_fold_and_goes_on_with_no_other(base: Path, phantom_shards: Path) -> None:
    run, shards = base / "run", open_dataset(base / "folds")
    for given in (None, str(base / "folds")):
        assert load_run(run, shards=given).dataset.fold == 1
    evaluate(load_run(run), "test", "test", micro_batch=16, world=discover({}))
    found = read_predictions(run / "predictions" / "test.parquet")
    assert found.fold == 1
    assert np.array_equal(found.row, np.flatnonzero(shards.columns["split"] == "fold1"))
    assert set(found.split) == {"test"}
    assert report.main([str(run)]) == 0
    page = (run / "report" / "index.html").read_text()
    assert "tested on fold 1 of 4" in page
    assert "Unseen patients." in page

    settings = read(run / "config.yaml")
    data = dataclasses.replace(settings.data, fold=2)
    other = settings_to_match(dataclasses.replace(settings, data=data), shards.version, 1)
    with pytest.raises(UserError, match=r"with data\.fold=1, now it is 2"):
        resume_step(settings, run / "checkpoints", other, discover({}))
    (base / "another.yaml").write_text(json.dumps({"name": "another", "parts": [{"ignore": ["masks"]}]}))
    images = ["--recipe", str(base / "another.yaml"), "--source", str(phantom_shards.parent / "images")]
    main(["build", *images, "--out", str(base / "another"), "--split", "kfold", "--folds", "3"])
    with pytest.raises(UserError, match="was built as folds, which other runs cannot choose from"):
        load_run(run, shards=str(base / "another"))


def test_the_order_of_the_two_classes_is_the_shards_own(base: Path) -> None:
    run, shards = base / "run", base / "swapped"
    evaluate(load_run(run, shards=str(shards)), "test", "swapped", micro_batch=16, world=discover({}))
    found = read_predictions(run / "predictions" / "swapped.parquet")
    assert found.classes == ("tumor", "notumor")
    np.testing.assert_allclose(found.prob[:, 0], added_up(load_run(run), found, shards), atol=1e-5)


def test_maps_of_the_added_up_class_come_from_the_whole_network(base: Path) -> None:
    loaded = load_run(base / "run", shards=str(base / "binary"))
    assert loaded.trained_on == ("glioma", "meningioma", "notumor", "pituitary")
    images = torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    assert loaded.model(images).shape == (4, 2)
    maps = [gradcam(loaded.model, images, [target] * 4) for target in (0, 1)]
    assert max(one.max() for one in maps) > 0.9
    assert not np.array_equal(*maps)


def test_other_classes_are_refused_with_what_would_fit(base: Path, phantom_shards: Path) -> None:
    images = phantom_shards.parent / "images"
    other = shards_of(images, base, "other", ["glioma", "notumor"], {"glioma": ["glioma"], "notumor": ["notumor"]})
    done = verb("evaluate", str(base / "run"), "--shards", str(other), "--name", "other", expect=2)
    assert len(done.err.strip().splitlines()) == 1
    assert f"the run knows the classes glioma, meningioma, notumor, pituitary, {other} has glioma, notumor" in done.err
    assert "of the same classes in the same order, or of notumor and tumor" in done.err


def test_a_run_that_knows_no_tumour_free_class_is_judged_on_its_own_classes_only(base: Path) -> None:
    settings_to_match = base / "run" / "environment.json"
    text = settings_to_match.read_text()
    try:
        settings_to_match.write_text(
            json.dumps(json.loads(text) | {"classes": ["glioma", "meningioma", "schwannoma", "pituitary"]})
        )
        with pytest.raises(UserError, match=r"of the same classes in the same order$"):
            load_run(base / "run", shards=str(base / "binary"))
    finally:
        settings_to_match.write_text(text)
