"""``brain-dist calibrate`` on adopted predictions of a scikit-learn model: the file, the page, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from foreign import classifier_probabilities
from helpers import in_process
from scipy.special import softmax

from brain_dist import config
from brain_dist.calibration.record import read_calibration
from brain_dist.calibration.subgroups import attribute_values, subgroup_table
from brain_dist.errors import UserError
from brain_dist.judging.metrics import evaluate_predictions
from brain_dist.judging.predictions import read_predictions, table_bytes
from brain_dist.store.dataset import Dataset, open_dataset


@pytest.fixture(scope="module")
def shards(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 48 phantom patients, 14 of them in each of validation and test."""
    out = tmp_path_factory.mktemp("thirds") / "shards"
    images = ["--source", str(phantom_shards.parent / "images"), "--out", str(out)]
    in_process("shard", "build", *images, "--fractions", "0.4,0.3,0.3")
    return out


@pytest.fixture(scope="module")
def adopted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the adopted predictions val and test of logistic regression, and "shifted", which are wrong."""
    base = tmp_path_factory.mktemp("adopted")
    dataset = open_dataset(shards)
    prob, k = classifier_probabilities(dataset), len(dataset.classes)
    wrong = 0.001 + (1 - k * 0.001) * np.eye(k)[(dataset.columns["label"] + 1) % k]
    for name, values in (("theirs", prob), ("shifted", wrong)):
        with (base / f"{name}.csv").open("w", newline="") as file:
            rows = zip(dataset.columns["key"], values.tolist(), strict=True)
            csv.writer(file).writerows([["key", *dataset.classes], *([key, *row] for key, row in rows)])
    run = base / "run"
    for file, split, name in (("theirs", "val", "val"), ("theirs", "test", "test"), ("shifted", "test", "shifted")):
        options = ["--shards", str(shards), "--split", split, "--name", name, "--run", str(run)]
        in_process("adopt", str(base / f"{file}.csv"), *options)
    in_process("calibrate", str(run), "--by", "dataset,width")
    return run


@pytest.fixture
def run(adopted: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(adopted, tmp_path / "run"))


def rewrite(run: Path, name: str, **changes: object) -> None:
    path = run / "predictions" / f"{name}.parquet"
    table = replace(read_predictions(path), **changes)  # type: ignore[arg-type]
    path.write_bytes(table_bytes(table, table.row))


def test_the_file_says_what_to_apply(adopted: Path) -> None:
    """Each number of calibration.json, computed again from the table with numpy alone."""
    content = json.loads((adopted / "calibration.json").read_text())
    val, test = (read_predictions(adopted / "predictions" / f"{name}.parquet") for name in ("val", "test"))
    assert (content["schema"], content["run"], content["step"], content["images"]) == (1, "run", 0, len(val))
    assert content["classes"] == list(val.classes)
    temperature, judged = content["temperature"], content["judged"]["test"]
    losses = [
        -np.log(softmax(val.logit.astype(float) / t, axis=1)[np.arange(len(val)), val.label]).mean()
        for t in (0.98 * temperature, temperature, 1.02 * temperature)
    ]
    assert losses[1] < min(losses[0], losses[2])
    after = softmax(test.logit.astype(float) / temperature, axis=1)
    metrics = evaluate_predictions(test.label, after.astype(np.float32), test.classes)
    assert judged["scaling"]["temperature"]["ece"]["value"] == pytest.approx(metrics["ece"], abs=1e-6)
    assert judged["scaling"]["temperature"]["nll"]["value"] == pytest.approx(metrics["nll"], abs=1e-5)
    assert judged["accuracy"] == metrics["accuracy"]  # a temperature changes no class
    assert judged["change"]["nll"]["value"] < 0
    # 14 patients, alpha 0.1: the 14th smallest of their scores
    threshold = content["thresholds"]["lac"][0]
    score = 1 - softmax(val.logit.astype(float), axis=1)[np.arange(len(val)), val.label]
    assert (threshold["groups"], threshold["k"]) == (14, 14)
    assert threshold["value"] == pytest.approx(score.max())
    sets = 1 - softmax(test.logit.astype(float), axis=1) <= threshold["value"]
    covered = sets[np.arange(len(test)), test.label]
    by_patient = [covered[test.patient == patient].mean() for patient in set(test.patient)]
    assert judged["conformal"]["lac"]["coverage"]["value"] == pytest.approx(np.mean(by_patient))
    assert judged["conformal"]["lac"]["mean_size"] == pytest.approx(sets.sum(axis=1).mean())
    assert judged["conformal"]["lac"]["law"]["beta"] == [14, 1]
    assert "a class has only" in content["thresholds"]["class_conditional"]
    assert "a class has only" in content["vector"]
    calibration = read_calibration(adopted)
    assert calibration is not None
    np.testing.assert_allclose(calibration.probabilities(test.logit), after)
    np.testing.assert_array_equal(calibration.sets(test.logit, "lac"), sets)
    assert calibration.sets(test.logit, "class_conditional") is None


def test_what_is_printed_and_shown(run: Path) -> None:
    (run / "calibration.json").unlink()
    (run / "config.yaml").write_text(config.dump(config.load(["--train.best", "accuracy"])))
    result = in_process("calibrate", str(run), "--judge", "test,shifted", "--alpha", "0.2", "--by", "dataset")
    lines = result.out.splitlines()
    assert lines[0].startswith("fitted on val: 42 images of 14 groups")
    assert "too confident" in lines[1]
    assert "not fitted: vector scaling: a class has only" in lines[2]
    shifted = lines[lines.index("shifted (42 images of 14 groups)") :]
    assert "the probabilities are not right" in shifted[1]
    assert (
        "0.0\u00a0% of the slices of a patient, averaged over the patients: coverage is lost, by 80.0 percentage points"
        in shifted[2]
    )
    assert "must not be relied on here" in shifted[2]
    page = (run / "report" / "calibration.html").read_text()
    for text in (
        lines[1],
        shifted[2].strip(),
        "Synthetic images.",
        "refused: a class has only",
        "By dataset",
        "chosen-on-fit",
    ):
        assert text in page
    assert "http" not in page.replace("http://www.w3.org", "")  # self-contained
    assert not list(run.glob(".*.part"))


def test_refusals(run: Path) -> None:
    def error(*arguments: str) -> str:
        result = in_process("calibrate", str(run), *arguments, expect=2)
        assert len(result.err.splitlines()) == 1
        return result.err

    before = (run / "calibration.json").read_bytes()
    assert "images of split test, and what is fitted on them could not be judged" in error("--fit", "test")
    assert "absent.parquet does not exist" in error("--judge", "absent")
    assert "--alpha 0.6: must be above 0 and below 0.5" in error("--alpha", "0.6")
    assert "has no such column or attribute" in error("--by", "scanner")
    assert "different values; choose one with fewer" in error("--by", "key")
    assert "--judge val: it has images of the fit" in error("--judge", "val")
    (run / "environment.json").write_text(json.dumps({"classes": ["notumor", "tumor"], "dataset_version": "0"}))
    assert "and the network has notumor, tumor; what is fitted on them does not fit its outputs" in error()
    (run / "environment.json").unlink()
    rewrite(run, "shifted", step=30)
    assert "--judge shifted: it is about step 30, and the calibration about step 0" in error("--judge", "shifted")
    rewrite(run, "shifted", step=0, classes=("a", "b", "c", "d"))
    assert "it has the classes a, b, c, d" in error("--judge", "shifted")
    assert (run / "calibration.json").read_bytes() == before
    result = in_process("calibrate", str(run))  # without --judge it is left out and named
    assert "shifted does not judge: it has the classes a, b, c, d" in result.out
    (run / "predictions" / "val.parquet").unlink()
    assert "brain-dist adopt PREDICTIONS --shards" in error()
    rewrite(run, "test", adopted=None, step=30)
    (run / "predictions" / "shifted.parquet").unlink()
    assert f"write it with `brain-dist evaluate {run} --split val --step 30`" in error()
    shutil.rmtree(run / "predictions")
    assert f"write it with `brain-dist evaluate {run} --split val`" in error()


def test_training_images_do_not_judge(run: Path) -> None:
    rewrite(run, "shifted", split=np.array(["train"] * 42, dtype=object))
    assert "shifted does not judge: it has training images" in in_process("calibrate", str(run)).out


def test_too_few_patients_get_no_sets_but_a_temperature(run: Path) -> None:
    val = read_predictions(run / "predictions" / "val.parquet")
    rewrite(run, "val", group=np.where(np.isin(val.patient, sorted(set(val.patient))[:7]), "one", val.group))
    result = in_process("calibrate", str(run))
    assert "not fitted: sets, one threshold: only 8 groups; sets of 90\u00a0% coverage need 9" in result.out
    assert "The temperature is" in result.out
    assert "No sets: only 8 groups" in (run / "report" / "calibration.html").read_text()


def test_nothing_judges_yet(run: Path) -> None:
    for name in ("test", "shifted"):
        (run / "predictions" / f"{name}.parquet").unlink()
    assert "nothing judges the calibration yet" in in_process("calibrate", str(run)).out
    assert json.loads((run / "calibration.json").read_text())["judged"] == {}


def test_damaged_file_is_explained(run: Path) -> None:
    intact = json.loads((run / "calibration.json").read_text())
    other = json.dumps(intact | {"thresholds": []})
    for content in ("{", "[]", '{"schema": 2}', '{"schema": 1}', other):
        (run / "calibration.json").write_text(content)
        with pytest.raises(UserError, match="write it again with `brain-dist calibrate`"):
            read_calibration(run)


def attributes(dataset: Dataset, name: str, values: list[object]) -> Dataset:
    """The dataset with an attribute whose values repeat over its rows."""
    texts = [json.dumps({} if value is None else {name: value}) for value in values]
    column = np.array([texts[row % len(texts)] for row in range(len(dataset))], dtype=object)
    return replace(dataset, columns=dataset.columns | {"attributes": column})


def test_values_of_attributes(adopted: Path, shards: Path) -> None:
    predictions, dataset = read_predictions(adopted / "predictions" / "test.parquet"), open_dataset(shards)
    assert set(attribute_values("sex", predictions, attributes(dataset, "sex", ["F", "M", None]))) == {
        "F", "M", "not known",
    }  # fmt: skip
    ages = attributes(dataset, "age", [None, *range(20, 80)])
    values = attribute_values("age", predictions, ages)
    numbers = [json.loads(ages.columns["attributes"][row]).get("age") for row in predictions.row]
    assert len(set(values) - {"not known"}) == 4
    for number, value in zip(numbers, values, strict=True):
        if number is None:
            assert value == "not known"
        else:
            low, high = value.removeprefix("above ").split(" to ")
            assert float(low) <= number <= float(high)


def test_gaps_between_subgroups() -> None:
    """Without a difference, the gap is what permuted values give; with one, it is far above."""
    rng = np.random.default_rng(0)
    group, value = np.repeat(np.arange(120), 5), np.repeat(np.array(["a", "b", "c", "d"])[np.arange(120) % 4], 5)
    value = np.where(group >= 115, "rare", value)
    for accuracy_of_d, small_p in ((0.8, False), (0.4, True)):
        right = rng.random(600) < np.where(value == "d", accuracy_of_d, 0.8)
        prob = np.where(right[:, None], [0.8, 0.2], [0.2, 0.8])
        result = subgroup_table(np.zeros(600, dtype=int), prob, group, value)
        rows = {row["name"]: row for row in result["rows"]}
        assert rows["a"]["accuracy"] == right[value == "a"].mean()
        assert (rows["a"]["groups"], rows["rare"]["groups"]) == (29, 5)
        assert [name for name, row in rows.items() if row["small"]] == ["rare"]
        assert rows["rare"]["interval"] is None
        low, high = rows["a"]["interval"]
        assert low < rows["a"]["accuracy"] < high
        accuracies = [rows[name]["accuracy"] for name in "abcd"]
        assert result["gap"]["difference"] == pytest.approx(max(accuracies) - min(accuracies))
        assert (result["gap"]["p"] < 0.01) == small_p
        assert result["gap"]["permuted_mean"] > 0.02  # the largest of several differences is never 0
    one = subgroup_table(np.zeros(600, dtype=int), prob, group, np.full(600, "a"))
    assert one["gap"] is None
