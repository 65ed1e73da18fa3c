"""Scores of how unlike the training an image is, their p-values, and what prediction says."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import in_process
from hypothesis import given
from hypothesis import strategies as st
from pictures import draw
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

import brain_dist
from brain_dist.errors import Fault, UserError
from brain_dist.ood.build import calibrated, evenly_spaced, fewest_groups, fit_outliers
from brain_dist.ood.record import FILE, read_detector
from brain_dist.ood.scores import METHODS, fit

LABELS = np.arange(300) % 3


def features_of(rng: np.random.Generator, count: int) -> np.ndarray:
    """Features of three classes in 16 dimensions, all far from the origin in a common direction."""
    means = np.full((3, 16), 4.0)
    means[:, :3] += 0.3 * np.eye(3)
    return means[np.arange(count) % 3] + 0.3 * rng.normal(size=(count, 16))


def auroc(method: str, outliers: np.ndarray, logits: tuple[np.ndarray, np.ndarray] | None = None) -> float:
    """AUROC of outliers against other images like the training's."""
    rng = np.random.default_rng(0)
    reference = fit(method, features_of(rng, 300), LABELS)
    inliers = features_of(rng, 90)
    own, other = logits or (np.zeros((len(inliers), 3)), np.zeros((len(outliers), 3)))
    score = np.concatenate([reference.scores(inliers, own), reference.scores(outliers, other)])
    return float(roc_auc_score(np.arange(len(score)) >= len(inliers), score))


def test_a_shift_along_the_mean_is_seen_unless_features_are_normalised() -> None:
    shifted = features_of(np.random.default_rng(1), 90) + 8  # three times as far from the origin, with the same noise
    assert auroc("mahalanobis", shifted) == 1.0
    assert auroc("knn", shifted) == 1.0
    assert auroc("knn_normalised", shifted) == 0.0  # of length 1, they have less noise than the training's


def test_scores_on_features_elsewhere() -> None:
    elsewhere = features_of(np.random.default_rng(2), 90) * np.where(np.arange(16) < 8, 1.5, 0.5)
    for method in ("mahalanobis", "knn", "knn_normalised"):
        assert auroc(method, elsewhere) == 1.0
    sure, unsure = np.tile([9.0, 0, 0], (90, 1)), np.tile([0.5, 0.4, 0.3], (90, 1))
    for method in ("energy", "msp"):
        assert auroc(method, elsewhere, (sure, unsure)) == 1.0


def test_scores_are_those_of_the_definitions() -> None:
    rng = np.random.default_rng(3)
    train, some, logits = features_of(rng, 300), features_of(rng, 5) + 1, rng.normal(size=(5, 3))
    distances = np.linalg.norm(some[:, None] - train[None], axis=2)
    np.testing.assert_allclose(
        fit("knn", train, LABELS).scores(some, logits), np.sort(distances, axis=1)[:, 9], rtol=1e-4
    )
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(fit("msp", train, LABELS).scores(some, logits), 1 - probability.max(axis=1))
    np.testing.assert_allclose(fit("energy", train, LABELS).scores(some, logits), -np.log(np.exp(logits).sum(axis=1)))
    means = np.stack([train[c == LABELS].mean(axis=0) for c in range(3)])
    precision = LedoitWolf(assume_centered=True).fit(train - means[LABELS]).precision_
    expected = [min(float((x - m) @ precision @ (x - m)) ** 0.5 for m in means) for x in some]
    np.testing.assert_allclose(fit("mahalanobis", train, LABELS).scores(some, logits), expected, rtol=1e-3)


@pytest.mark.parametrize(("images", "classes"), [(1, 1), (3, 3), (6, 3)])
def test_images_of_a_class_that_do_not_differ_have_no_covariance(images: int, classes: int) -> None:
    """With one image of each class, as ``--limit 3`` can give, the distances from the class means are all 0."""
    label = np.arange(images) % classes
    features = np.eye(3, 8, dtype=np.float32)[label]
    with pytest.raises(UserError, match=rf"{images} images of {classes} classes.* raise --limit"):
        fit("mahalanobis", features, label)
    scores = fit("knn", features, label).scores(features + 1, np.zeros((images, classes)))
    assert np.isfinite(scores).all()
    changed = np.concatenate([features, features[:1] + 0.1])  # one more image of the first class
    scores = fit("mahalanobis", changed, np.append(label, 0)).scores(features + 1, np.zeros((images, classes)))
    assert np.isfinite(scores).all()


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_p_values_count_patients(groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    group = np.array([f"g{number}" for number in range(groups) for _ in range(1 + number % 3)])
    logits = rng.normal(size=(len(group), 4)).round(1)
    reference = fit("energy", np.zeros((4, 2)), np.arange(4))
    detector = calibrated(reference, np.zeros((len(group), 2)), logits, group, 0.02, "", {})
    new = rng.normal(size=(6, 4)).round(1)
    own, score = reference.scores(np.zeros((len(group), 2)), logits), reference.scores(np.zeros((6, 2)), new)
    expected = [
        (1 + sum(np.mean(own[group == name] >= value) for name in np.unique(group))) / (groups + 1) for value in score
    ]
    np.testing.assert_allclose(detector.p_values(np.zeros((6, 2)), new), expected)
    assert fewest_groups(0.02) == 50


def test_false_alarms_are_as_rare_as_asked_for() -> None:
    rng, alarms = np.random.default_rng(4), []
    reference = fit("energy", np.zeros((4, 2)), np.arange(4))
    for _ in range(400):
        patient = rng.normal(size=61)  # what the slices of a patient have in common
        group = np.repeat(np.arange(60), 3)
        logits = (patient[group] + 0.3 * rng.normal(size=180))[:, None]
        detector = calibrated(reference, np.zeros((180, 2)), logits, group.astype(str), 0.1, "", {})
        new = (patient[60:] + 0.3 * rng.normal(size=1))[:, None]
        alarms.append(detector.p_values(np.zeros((1, 2)), new)[0] < 0.1)
    assert 0.05 < np.mean(alarms) < 0.14  # 0.1 is expected; 4 standard errors are 0.06


@pytest.mark.parametrize("length", [1, 2, 60, 100, 101, 199, 250, 5000])
def test_outliers_are_made_from_images_of_the_whole_index(length: int) -> None:
    """Collections of joined shards follow each other: of 199 images, the first 100 would be those of one collection."""
    positions = evenly_spaced(length, 100)
    assert len(set(positions.tolist())) == len(positions) == min(length, 100)
    assert (positions[0], positions[-1]) == (0, length - 1)
    if length > 1:
        assert np.ptp(np.diff(positions)) <= 1


@pytest.fixture(scope="module")
def run_with_detector(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = shutil.copytree(trained_run, tmp_path_factory.mktemp("detector") / "run")
    result = in_process("outliers", str(run), "--alpha", "0.2", "--device", "cpu")
    lines = result.out.splitlines()
    assert [line.split(":")[0].strip() for line in lines[:5]] == list(METHODS)
    assert lines[-1] == f"detector: {run / FILE}"
    return run


def test_prediction_refuses_what_is_unlike_the_training(run_with_detector: Path, phantom_shards: Path) -> None:
    detector = read_detector(run_with_detector)
    assert detector is not None
    means = {name: np.mean(list(values.values())) for name, values in detector.auroc.items()}
    assert means[detector.reference.method] == max(means.values())
    predictor = brain_dist.load(run_with_detector)
    images = sorted((phantom_shards.parent / "images" / "glioma").iterdir())
    own = predictor.predict(images)
    strange = predictor.predict(
        [np.random.default_rng(n).integers(0, 255, (96, 96), dtype=np.uint8) for n in range(20)]
    )
    assert all(each.ood_p is not None for each in [*own, *strange])
    assert np.mean([each.verdict == "not_like_training" for each in own]) < 0.5
    assert np.mean([each.ood_p for each in strange]) < np.mean([each.ood_p for each in own])
    assert all((each.verdict == "not_like_training") == (each.ood_p < 0.2) for each in [*own, *strange])


def test_detector_of_other_weights_is_not_used(run_with_detector: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_with_detector / FILE
    data = path.read_bytes()
    weights = brain_dist.load(run_with_detector).contract.weights
    assert weights is not None
    path.write_bytes(data.replace(weights.sha256.encode(), weights.sha256[::-1].encode()))
    (prediction,) = brain_dist.load(run_with_detector).predict(draw(1))
    assert prediction.ood_p is None
    assert "its detector of outliers belongs to another step" in capsys.readouterr().err
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="write it again with `brain-dist outliers`"):
        brain_dist.load(run_with_detector)
    path.write_bytes(data)


def test_full_memory_is_one_line(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brain_dist.ood.build.row_outputs", lambda *_, **__: torch.empty(2**55))
    with pytest.raises(Fault, match=r"^the memory of the device is full .*; lower --batch 7"):
        fit_outliers(trained_run, micro_batch=7, device="cpu")


def test_mistakes_are_one_line(trained_run: Path) -> None:
    for arguments, message in (
        (["--alpha", "0.7"], "--alpha 0.7: must be above 0 and below 0.5"),
        (["--method", "best"], "--method best: must be auto, mahalanobis"),
        (["--batch", "0"], "must be ≥ 1"),
    ):
        assert message in in_process("outliers", str(trained_run), *arguments, expect=2).err
