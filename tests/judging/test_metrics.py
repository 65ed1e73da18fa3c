"""Metrics against scikit-learn's independent implementation, the undefined cases, and the predictions table."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error

from brain_dist.errors import UserError
from brain_dist.judging.clusters import wilson_interval
from brain_dist.judging.metrics import accuracy_interval, evaluate_predictions, reliability
from brain_dist.judging.predictions import Predictions, predictions_from_logits, read_predictions, table_bytes
from brain_dist.judging.refusal import Refusal

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")


def random_predictions(n: int, seed: int, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.choice(4, n, p=[0.4, 0.1, 0.3, 0.2])
    logit = rng.normal(size=(n, 4)) + 1.5 * np.eye(4)[label]
    if ties:  # coarse scores: many equal probabilities, across samples and within one
        logit = np.round(logit)
    prob = np.exp(logit)
    return label, (prob / prob.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scikit_learn(seed: int, ties: bool) -> None:
    label, prob = random_predictions(500, seed, ties)
    predicted = prob.argmax(1)
    exact = prob / prob.sum(1, keepdims=True, dtype=np.float64)
    result = evaluate_predictions(label, prob, CLASSES)
    precision, recall, f1, support = sk.precision_recall_fscore_support(label, predicted, labels=range(4))
    auc = sk.roc_auc_score(label, prob, multi_class="ovr", average=None, labels=range(4))
    confusion = sk.confusion_matrix(label, predicted, labels=range(4))
    assert result["confusion"] == confusion.tolist()
    for c, name in enumerate(CLASSES):
        rest = label != c
        expected = {
            "n": support[c],
            "predicted": (predicted == c).sum(),
            "sensitivity": recall[c],
            "specificity": (predicted[rest] != c).mean(),
            "precision": precision[c],
            "f1": f1[c],
            "auc": auc[c],
        }
        assert result["per_class"][name] == pytest.approx(expected, abs=1e-6)
    expected = {
        "accuracy": sk.accuracy_score(label, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(label, predicted),
        "sensitivity_macro": recall.mean(),
        "precision_macro": precision.mean(),
        "f1_macro": sk.f1_score(label, predicted, average="macro"),
        "auc_macro": sk.roc_auc_score(label, prob, multi_class="ovr"),
        "kappa": sk.cohen_kappa_score(label, predicted),
        "mcc": sk.matthews_corrcoef(label, predicted),
        "nll": sk.log_loss(label, exact),
        "brier": sk.brier_score_loss(label, exact, scale_by_half=False),
    }
    assert {k: result[k] for k in expected} == pytest.approx(expected, abs=1e-5)
    json.dumps(result, allow_nan=False)


def test_ece_is_the_gap_of_the_reliability_diagram() -> None:
    label, prob = random_predictions(800, 5)
    bins = reliability(label, prob)
    assert bins["count"].sum() == 800
    expected = multiclass_calibration_error(torch.from_numpy(prob), torch.from_numpy(label), num_classes=4, n_bins=15)
    assert evaluate_predictions(label, prob, CLASSES)["ece"] == pytest.approx(float(expected), abs=1e-6)
    # by hand: 1.0 (one of two correct) and 0.95 (both correct) share the last of 15 bins: |3/4 - 0.975|
    prob = np.array([[1, 0], [1, 0], [0.95, 0.05], [0.95, 0.05]])
    assert evaluate_predictions(np.array([0, 1, 0, 0]), prob, "ab")["ece"] == pytest.approx(0.225)
    # by hand: a confidence on an edge, 0.8 = 12/15, belongs to the bin below; one of two is correct
    assert evaluate_predictions(np.array([0, 1]), np.array([[0.8, 0.2]] * 2), "ab")["ece"] == pytest.approx(0.3)


def test_an_absent_class_is_undefined_and_not_counted() -> None:
    label = np.array([0, 0, 1, 1, 3])
    prob = np.eye(4, dtype=np.float32)[[0, 1, 1, 1, 3]] * 0.9 + 0.025
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torchmetrics warns when it replaces an undefined metric by 0
        result = evaluate_predictions(label, prob, CLASSES)
    absent = result["per_class"]["notumor"]
    assert absent["specificity"] == 1.0
    assert [absent[m] for m in ("n", "sensitivity", "precision", "f1", "auc")] == [0, None, None, None, None]
    assert result["balanced_accuracy"] == pytest.approx((0.5 + 1 + 1) / 3)
    json.dumps(result, allow_nan=False)


def test_a_class_that_is_never_predicted_has_no_precision() -> None:
    result = evaluate_predictions(np.array([0, 1, 0, 1]), np.array([[0.9, 0.1]] * 4), ["a", "b"])
    assert result["per_class"]["b"]["precision"] is None
    assert result["per_class"]["b"]["f1"] == 0.0
    assert result["precision_macro"] is None
    assert result["kappa"] is None
    assert result["mcc"] is None
    assert result["auc_macro"] == 0.5  # all tied


def test_one_sample() -> None:
    result = evaluate_predictions(np.array([2]), np.array([[0.1, 0.2, 0.6, 0.1]]), CLASSES, np.array(["p1"]))
    assert result["accuracy"] == 1.0
    assert result["accuracy_interval"] == {"refused": "only 1 group; an interval over groups needs 10"}
    undefined = ("auc_macro", "kappa", "mcc", "specificity_macro")
    assert [result[name] for name in undefined] == [None] * 4
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("label", "prob", "message"),
    [
        ([0, 4], [[1, 0, 0, 0]] * 2, "0..3"),
        ([0, 1], [[1, 0, 0]] * 2, "do not fit"),
        ([0, 1], [[1, 0, 0, 0], [np.nan, 0, 0, 1]], "first at 1"),
        ([0, 1], [[2, -1, 0, 0], [1, 0, 0, 0]], "first at 0"),
        ([0], [[3.0, 1.0, 0.5, 0.2]], "not probabilities"),  # logits by mistake
    ],
)
def test_invalid_arrays_are_refused(label: list[int], prob: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_predictions(np.array(label), np.array(prob), CLASSES)
    with pytest.raises(ValueError, match="no predictions"):
        evaluate_predictions(np.empty(0, dtype=int), np.empty((0, 4)), CLASSES)


def test_wilson_interval_is_the_published_formula() -> None:
    z, p, n = 1.959963984540054, 0.9, 50
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson_interval(45, 50) == pytest.approx([centre - half, centre + half])


def test_without_groups_the_samples_are_the_trials() -> None:
    result = evaluate_predictions(np.array([2]), np.array([[0.1, 0.2, 0.6, 0.1]]), CLASSES)
    assert result["accuracy_interval"]["interval_of"] == "Wilson"
    assert result["accuracy_interval"]["interval"] == pytest.approx([0.2065, 1.0], abs=1e-4)  # 1 / (1 + z²)


@pytest.mark.parametrize("patients", [1, 9, 12])
def test_an_accuracy_of_100_percent_is_about_patients_and_not_their_slices(patients: int) -> None:
    """Twelve patients without an error allow an accuracy of 76 %, however many slices each of them has."""
    n = 50 * patients
    label = np.arange(n) % 2
    group = np.arange(n) // 50
    result = evaluate_predictions(label, np.eye(2)[label], "ab", group)["accuracy_interval"]
    wrong = evaluate_predictions(label, np.eye(2)[1 - label], "ab", group)["accuracy_interval"]
    if patients < 10:
        word = "group" if patients == 1 else "groups"
        assert result == wrong == {"refused": f"only {patients} {word}; an interval over groups needs 10"}
    else:
        z2 = 1.959963984540054**2
        assert result["interval"] == pytest.approx([12 / (12 + z2), 1])
        assert result["interval"][0] == pytest.approx(0.7575, abs=1e-4)
        assert wrong["interval"] == pytest.approx([0, z2 / (12 + z2)])
        assert result["interval_of"] == wrong["interval_of"] == "Wilson"


def test_accuracy_interval_widens_with_dependence_and_repeats_exactly() -> None:
    rng = np.random.default_rng(0)
    patient_correct = rng.random(40) < 0.8
    correct, group = (
        np.repeat(patient_correct, 25),
        np.repeat(np.arange(40), 25),
    )  # a patient's slices are all correct or all wrong
    low, high = accuracy_interval(correct, group)["interval"]
    wilson = wilson_interval(int(correct.sum()), 1000)
    assert high - low > 3 * (wilson[1] - wilson[0])
    # close to the normal interval of 40 independent patients, not of 1,000 slices
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(patient_correct.var() / 40), rel=0.15)
    assert accuracy_interval(correct, group) == {"interval": [low, high], "interval_of": "percentile"}
    shuffled = rng.permutation(1000)
    assert accuracy_interval(correct[shuffled], group[shuffled])["interval"] == [low, high]
    few = group < 9
    with pytest.raises(Refusal, match="only 9 groups; an interval over groups needs 10"):
        accuracy_interval(correct[few], group[few])


@dataclass
class Index:
    """The part of store.dataset.Dataset that a predictions table needs."""

    root: Path
    columns: dict[str, np.ndarray]
    classes: tuple[str, ...] = CLASSES
    version: str = "ab12"
    origin: str | None = None
    fold: int | None = None
    folds: int = 0


@pytest.fixture
def predictions(tmp_path: Path) -> Predictions:
    n = 12
    text = {name: np.array([f"{name}{i}" for i in range(n)], dtype=object) for name in ("key", "dataset", "group")}
    patient = np.array([None if i % 3 == 0 else f"p{i}" for i in range(n)], dtype=object)
    columns = {**text, "patient": patient, "split": np.array(["test"] * n, dtype=object)}
    columns["label"] = np.arange(n, dtype=np.int16) % 4
    rows = np.array([7, 2, 9, 4, 11])  # in no order, as from several ranks
    logits = np.arange(20, dtype=np.float32).reshape(5, 4) % 7 * rows[:, None]
    index = Index(tmp_path, columns)
    return predictions_from_logits(index, rows, logits, run="r1", step=30)  # type: ignore[arg-type]


def test_predictions_are_read_as_they_were_written(predictions: Predictions, tmp_path: Path) -> None:
    path = tmp_path / "run" / "predictions" / "test.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(table_bytes(predictions, np.array([2, 4, 7, 9, 11])))
    result = read_predictions(path)
    assert result.row.tolist() == [2, 4, 7, 9, 11]
    assert result.patient.tolist() == ["p2", "p4", "p7", None, "p11"]
    assert result.label.tolist() == [2, 0, 3, 1, 3]
    for name in ("key", "dataset", "split", "group", "prob", "logit", "predicted"):
        np.testing.assert_array_equal(getattr(result, name), getattr(predictions, name))
    assert (result.run, result.step, result.dataset_version, result.classes) == ("r1", 30, "ab12", CLASSES)
    assert result.shards == str(tmp_path)
    np.testing.assert_allclose(result.prob.sum(1), 1, atol=1e-6)
    assert result.evaluate()["n"] == 5
    assert result.evaluate(result.row > 4)["n"] == 3
    assert [p.name for p in path.parent.iterdir()] == ["test.parquet"]
    names = pq.read_schema(path).names
    assert names[:8] == ["row", "key", "dataset", "split", "patient", "group", "label", "predicted"]
    assert names[8:] == [f"prob_{c}" for c in CLASSES] + [f"logit_{c}" for c in CLASSES]


def test_a_table_has_every_row_exactly_once(predictions: Predictions) -> None:
    with pytest.raises(ValueError, match="1 rows are missing, first 3"):
        table_bytes(predictions, np.array([2, 3, 4, 7, 9, 11]))
    with pytest.raises(ValueError, match="1 rows are unexpected, first 11"):
        table_bytes(predictions, np.array([2, 4, 7, 9]))
    doubled = replace(predictions, row=np.array([2, 4, 4, 9, 11]))
    with pytest.raises(ValueError, match="1 rows appear more than once, first 4"):
        table_bytes(doubled, np.array([2, 4, 9, 11]))


def test_unreadable_tables_are_explained(predictions: Predictions, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"brain_dist\.evaluate"):
        read_predictions(tmp_path / "absent.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="not a predictions table"):
        read_predictions(tmp_path / "broken.parquet")
    good = tmp_path / "good.parquet"
    good.write_bytes(table_bytes(predictions, predictions.row))
    table = pq.read_table(good)
    index = table.column_names.index("predicted")
    pq.write_table(table.set_column(index, "predicted", [[1, 1, 1, 1, 1]]), tmp_path / "edited.parquet")
    with pytest.raises(UserError, match="largest probability"):
        read_predictions(tmp_path / "edited.parquet")
