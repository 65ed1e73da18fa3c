"""`brain-dist compare` on predictions tables of phantoms, from the command line to the page in a browser."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import browser
from helpers import in_process
from scipy.stats import norm

from brain_dist.comparison.blocks import collections
from brain_dist.comparison.build import compare
from brain_dist.comparison.paired import rank_interval, separate_tiers
from brain_dist.comparison.sign_flip import sign_flip_p
from brain_dist.comparison.tables import read_tables
from brain_dist.comparison.wording import p_text, verdict
from brain_dist.errors import UserError
from brain_dist.judging.predictions import Predictions, predictions_from_logits, read_predictions, table_bytes
from brain_dist.store.dataset import Dataset, open_dataset

Change = Callable[[Predictions], Predictions]
FEW = 400  # resamples where the interval itself is not tested


@pytest.fixture(scope="module")
def dataset(phantom_shards: Path) -> Dataset:
    return open_dataset(phantom_shards)


def predictions(dataset: Dataset, skill: float, seed: int, rows: np.ndarray | None = None) -> Predictions:
    """Predictions of a made-up model; some images are hard for every model."""
    rows = np.arange(len(dataset)) if rows is None else rows
    hardness = np.random.default_rng(100).normal(size=(len(dataset), len(dataset.classes)))
    noise = np.random.default_rng(seed).normal(size=hardness.shape)
    logits = hardness + 0.6 * noise + skill * np.eye(len(dataset.classes))[dataset.columns["label"]]
    return predictions_from_logits(dataset, rows, logits[rows], run=f"run{seed}", step=1)


def write_run(folder: Path, table: Predictions, name: str = "test") -> Path:
    """A run's folder with a predictions table."""
    file = folder / "predictions" / f"{name}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(table_bytes(table, table.row))
    return folder


@pytest.fixture(scope="module")
def runs(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs ``good``, ``same`` (as good, another seed), ``poor``."""
    base = tmp_path_factory.mktemp("runs")
    skills = {"good": (2.0, 1), "same": (2.0, 2), "poor": (1.0, 3)}
    return {name: write_run(base / name, predictions(dataset, *of)) for name, of in skills.items()}


def changed(run: Path, folder: Path, change: Change) -> Path:
    """A copy of a run whose table is changed."""
    return write_run(folder, change(read_predictions(run / "predictions" / "test.parquet")))


@pytest.mark.slow
def test_page_and_files_of_a_comparison(runs: dict[str, Path], tmp_path: Path) -> None:
    arguments = [str(runs["good"]), str(runs["poor"]), str(runs["same"]), "--margin", "0.05"]
    printed = in_process("compare", *arguments, "--out", str(tmp_path / "a")).out
    in_process("compare", *arguments, "--out", str(tmp_path / "b"))
    for name in ("compare.json", "compare.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    page = (tmp_path / "a" / "index.html").read_text()
    assert page == (tmp_path / "b" / "index.html").read_text().replace(f"{tmp_path}/b", f"{tmp_path}/a")

    result = json.loads((tmp_path / "a" / "compare.json").read_text())
    tables = {name: read_predictions(run / "predictions" / "test.parquet") for name, run in runs.items()}
    accuracy = {name: float((table.predicted == table.label).mean()) for name, table in tables.items()}
    models, pairs = result["metrics"]["accuracy"]["models"], result["metrics"]["accuracy"]["pairs"]
    assert {name: model["value"] for name, model in models.items()} == pytest.approx(accuracy)
    assert list(models) == sorted(accuracy, key=lambda name: -accuracy[name])
    assert [model["tier"] for model in models.values()] == [1, 1, 2]
    assert [model["rank"] for model in models.values()] == [[1, 2], [1, 2], [3, 3]]
    for pair in pairs:
        low, high = pair["interval"]
        assert pair["difference"] == pytest.approx(accuracy[pair["a"]] - accuracy[pair["b"]])
        assert low < pair["difference"] < high
        adjusted = norm.isf(0.05 / 6) / norm.isf(0.05 / 2)  # three pairs: the first of Holm's steps has alpha / 3
        assert pair["smallest"] == pytest.approx(adjusted * (high - low) / 2)
        assert pair["not_inferior"] == {"a": low > -0.05, "b": high < 0.05}
        assert pair["separable"] == ("poor" in (pair["a"], pair["b"])) == (pair["p_holm"] < 0.05)
    assert "no difference shown; this table could have shown about" in printed
    assert printed.count("is better") == 2
    assert "no difference shown; this table could have shown about" in page
    assert "No critical-difference diagram." in page
    with (tmp_path / "a" / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    first = next(row for row in rows if row["metric"] == "accuracy")
    assert float(first["difference"]) == pairs[0]["difference"]
    assert {row["refused"][:13] for row in rows if row["test"] == "friedman"} == {"1 collection:"}


@pytest.mark.slow
def test_seeds_of_a_model_are_averaged(runs: dict[str, Path]) -> None:
    group, sides = f"both={runs['good']},{runs['poor']}", ["good", "poor"]
    comparison = in_process("compare", "--group", group, str(runs["same"]), "--metric", "accuracy").out
    assert "McNemar" in comparison
    assert "both is a mean of 2 runs, which is neither right nor wrong on an image" in comparison
    tables = read_tables({"both": [runs[name] for name in sides], "same": [runs["same"]]}, ["test"])
    result = compare(tables, ["accuracy", "auc_macro"], resamples=FEW)["metrics"]
    for metric in ("accuracy", "auc_macro"):
        alone = [read_predictions(runs[name] / "predictions" / "test.parquet").evaluate()[metric] for name in sides]
        model = result[metric]["models"]["both"]
        assert model["runs"] == pytest.approx(alone, abs=1e-6)
        assert model["value"] == pytest.approx(np.mean(alone), abs=1e-6)
        assert model["sd_runs"] == pytest.approx(np.std(alone, ddof=1), abs=1e-6)


def test_a_model_beside_itself_does_not_differ(runs: dict[str, Path]) -> None:
    result = compare(read_tables({"a": [runs["good"]], "b": [runs["good"]]}, ["test"]), resamples=FEW, margin=0.1)
    pair = result["metrics"]["accuracy"]["pairs"][0]
    assert (pair["difference"], pair["p"], pair["separable"]) == (0, 1, False)
    assert pair["refused"] == "no spread: every resample gives the same value"
    auc = result["metrics"]["auc_macro"]["pairs"][0]
    assert auc["p"] is None
    assert auc["p_refused"] == "the difference has no variance: both order the images alike"
    by_test = {test["test"]: test["rows"] for test in result["tests"]}
    assert by_test["mcnemar"][0]["refused"] == "both are right on the same images"
    assert by_test["cochran"][0]["refused"] == "two models: Cochran's test is McNemar's"
    assert result["metrics"]["accuracy"]["tiers"] == [["a", "b"]]


def errors_of(*paths: Path) -> str:
    return in_process("compare", *map(str, paths), expect=2).err


def test_other_images_are_counted_and_named(runs: dict[str, Path], dataset: Dataset, tmp_path: Path) -> None:
    keys = dataset.columns["key"]

    def rows(table: Predictions, kept: np.ndarray) -> Predictions:
        arrays = {name: value[kept] for name, value in vars(table).items() if isinstance(value, np.ndarray)}
        return replace(table, **arrays)

    fewer = changed(runs["good"], tmp_path / "fewer", lambda table: rows(table, np.arange(3, len(table))))
    message = errors_of(runs["poor"], fewer)
    assert f"of 144 images of poor, 3 are missing in fewer, which has 0 others, first {keys[0]};" in message
    message = errors_of(fewer, runs["poor"])
    assert f"of 141 images of fewer, 0 are missing in poor, which has 3 others, first {keys[0]};" in message
    other = changed(runs["good"], tmp_path / "other", lambda table: replace(table, dataset_version="f" * 64))
    message = errors_of(runs["poor"], other)
    assert f"(dataset versions {dataset.version[:8]} and ffffffff): of 144 images of poor, 144 are missing" in message
    half = changed(runs["good"], tmp_path / "half", lambda table: rows(table, np.arange(72)))
    with pytest.raises(UserError, match=rf"^a: 72 images are in two of its tables, first {keys[0]}; runs of one"):
        read_tables({"a": [runs["good"], half], "b": [runs["poor"]]}, ["test"])
    rest = changed(runs["good"], tmp_path / "rest", lambda table: rows(table, np.arange(72, 144)))
    with pytest.raises(UserError, match=r"^--name test is given 2 times"):
        read_tables({"a": [half], "b": [runs["poor"]]}, ["test", "test"])
    write_run(half, read_predictions(half / "predictions" / "test.parquet"), "flip")
    with pytest.raises(UserError, match=r"half: its predictions test and flip have the same images"):
        read_tables({"a": [half], "b": [half]}, ["test", "flip"])
    with pytest.raises(UserError, match=r"^a has 1 runs for some images and 2 for others"):
        read_tables({"a": [half, half, rest], "b": [runs["poor"]]}, ["test"])
    assert len(read_tables({"a": [rest, half], "b": [runs["poor"]]}, ["test"])) == 144


def test_other_labels_groups_and_classes_are_refused(runs: dict[str, Path], dataset: Dataset, tmp_path: Path) -> None:
    label = changed(runs["good"], tmp_path / "label", lambda table: replace(table, label=np.roll(table.label, 1)))
    assert "label and poor have another label for" in errors_of(runs["poor"], label)
    alone = changed(runs["good"], tmp_path / "alone", lambda table: replace(table, group=table.key))
    assert "alone and poor have another group for 96 images" in errors_of(runs["poor"], alone)
    classes = changed(runs["good"], tmp_path / "classes", lambda table: replace(table, classes=tuple("abcd")))
    assert f"classes has the classes a, b, c, d, poor has {', '.join(dataset.classes)}" in errors_of(
        runs["poor"], classes
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "two or more models are needed"),
        (["{good}"], "two or more models are needed"),
        (["{good}", "{good}"], "two models have the name good"),
        (["{good}", "{poor}", "--metric", "acuracy"], "did you mean accuracy?"),
        (["{good}", "{poor}", "--metric", "mcc", "--metric", "mcc"], "--metric mcc is given 2 times"),
        (["{good}", "{poor}", "--margin", "-1"], "--margin -1: must be above 0"),
        (["{good}", "{poor}", "--group", "a"], "must be MODEL=RUN,RUN"),
        (["{good}", "--group", "a={poor},{poor}"], "poor is listed 2 times; a run counts once"),
        (["{good}", "{poor}", "--name", "test", "--name", "test"], "--name test is given 2 times"),
        (["{good}", "{poor}", "--name", "absent"], "absent.parquet does not exist"),
        (["{good}", "{poor}", "--unit", "patient"], "choose from image, collection, fold"),
    ],
)
def test_mistakes_are_one_line(runs: dict[str, Path], arguments: list[str], message: str) -> None:
    words = [word.format(**runs) for word in arguments]
    error = in_process("compare", *words, expect=2).err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_images_that_training_of_one_model_knew_are_left_out_for_all(runs: dict[str, Path], tmp_path: Path) -> None:
    known = np.array(["same pixels"] * 12 + [""] * 132, dtype=object)
    run = changed(runs["good"], tmp_path / "knew", lambda table: replace(table, known=known, not_compared="no index"))
    tables = read_tables({"knew": [run], "poor": [runs["poor"]]}, ["test"])
    assert (len(tables), tables.known, tables.not_compared) == (132, 12, "no index")
    allowed = changed(run, tmp_path / "allowed", lambda table: replace(table, allow_known=True))
    assert len(read_tables({"allowed": [allowed], "poor": [runs["poor"]]}, ["test"])) == 144
    assert "12 that training knew are left out" in in_process("compare", str(run), str(runs["poor"])).out
    all_known = np.array(["near copy"] * 144, dtype=object)
    run = changed(runs["good"], tmp_path / "all", lambda table: replace(table, known=all_known))
    assert "training knew every image" in errors_of(run, runs["poor"])


def test_few_groups_are_refused_in_words_with_exit_code_0(runs: dict[str, Path], tmp_path: Path) -> None:
    def few(table: Predictions) -> Predictions:
        kept = np.flatnonzero(np.isin(table.group, np.unique(table.group)[:8]))
        arrays = {name: value[kept] for name, value in vars(table).items() if isinstance(value, np.ndarray)}
        return replace(table, **arrays)

    paths = [changed(runs[name], tmp_path / name, few) for name in ("good", "poor")]
    printed = in_process("compare", *map(str, paths)).out
    assert "no interval: only 8 groups; an interval over groups needs 10" in printed
    assert "all pairs: refused: " not in printed.partition("Sensitivity of a class")[0]
    result = compare(read_tables({path.name: [path] for path in paths}, ["test"]), resamples=FEW)
    by_test = {test["test"]: test["rows"] for test in result["tests"]}
    for test in ("sensitivity", "delong", "delong_clustered"):
        assert all("refused" in row for row in by_test[test]), test
    assert any(" of glioma; an interval over groups needs 10" in row["refused"] for row in by_test["sensitivity"])
    assert result["metrics"]["accuracy"]["pairs"][0]["p"] is not None  # sign flips are exact for any number


def test_intervals_that_depend_on_a_class_of_few_groups_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    """With 6 groups of a class, a 95 % interval of the balanced accuracy covers about 70 %."""

    def rare(table: Predictions) -> Predictions:
        groups = np.unique(table.group[table.label == 0])
        return table.take(np.flatnonzero((table.label != 0) | np.isin(table.group, groups[:6])))

    paths = {name: [changed(runs[name], tmp_path / name, rare)] for name in ("good", "poor")}
    metrics = ["accuracy", "balanced_accuracy", "f1_macro", "mcc", "auc_macro"]
    result = compare(read_tables(paths, ["test"]), metrics, resamples=FEW)["metrics"]
    reason = "only 6 groups of glioma; an interval over groups needs 10"
    for name in metrics[1:]:
        (pair,) = result[name]["pairs"]
        assert pair["refused"] == result[name]["models"]["good"]["refused"] == reason
        assert (pair["p"] is None) == (name != "balanced_accuracy"), name  # sign flips are exact for any number
    assert "interval" in result["accuracy"]["pairs"][0]


def sites(count: int) -> Change:
    """Divide the patients of a table over ``count`` collections."""

    def change(table: Predictions) -> Predictions:
        number = np.unique(table.group, return_inverse=True)[1]
        return replace(table, dataset=np.array([f"site{n % count}" for n in number], dtype=object))

    return change


def test_ranks_over_collections(runs: dict[str, Path], tmp_path: Path) -> None:
    paths = [changed(runs[name], tmp_path / name, sites(8)) for name in runs]
    arguments = ["--unit", "collection", "--metric", "brier", "--out", str(tmp_path / "out")]
    printed = in_process("compare", *map(str, paths), *arguments).out
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    by_test = {test["test"]: test["rows"] for test in result["tests"]}
    assert list(by_test) == ["friedman", "nemenyi", "aligned_ranks", "wilcoxon"]
    names, values = [model["name"] for model in result["models"]], np.array(result["collections"]["values"])
    table = read_predictions(paths[0] / "predictions" / "test.parquet")
    part = table.dataset == "site3"
    assert values[3, names.index("good")] == pytest.approx(table.evaluate(part)["brier"], abs=1e-6)
    ranks = dict(zip(names, by_test["friedman"][0]["mean_ranks"], strict=True))
    assert ranks["poor"] == max(ranks.values())  # the largest error has the last rank
    assert all(row["p"] < 0.05 for row in by_test["wilcoxon"] if row["b"] == "poor")
    assert "Nemenyi's critical difference" in printed
    assert (
        "Critical-difference diagram: mean rank by Brier score over 8 collections"
        in (tmp_path / "out" / "index.html").read_text()
    )


def test_too_few_collections_and_undefined_ones(runs: dict[str, Path], tmp_path: Path) -> None:
    paths = {name: [changed(runs[name], tmp_path / name, sites(5))] for name in runs}
    tables = read_tables(paths, ["test"])
    by_test = {
        test["test"]: test["rows"] for test in compare(tables, ["accuracy"], "collection", resamples=FEW)["tests"]
    }
    reason = "5 collections: the χ² approximation and the critical difference need 6 or more"
    assert {by_test[name][0]["refused"] for name in ("friedman", "nemenyi", "aligned_ranks")} == {reason}
    assert "the values differ in 5 collections: the smallest possible p is 0.0625; 6 or more are needed" in {
        row["refused"] for row in by_test["wilcoxon"]
    }
    one_class = replace(tables, dataset=np.where(tables.label == 0, "only gliomas", "mixed").astype(object))
    collections = compare(one_class, ["auc_macro"], "collection", resamples=FEW)["collections"]
    assert (collections["names"], collections["undefined"]) == (["mixed"], ["only gliomas"])


def fold_runs(dataset: Dataset, versions: int, folds: int, folder: Path) -> dict[str, list[Path]]:
    """Two models with a run for each fold of random splits of all images."""
    rng, models = np.random.default_rng(0), {"good": 2.0, "poor": 1.0}
    paths: dict[str, list[Path]] = {name: [] for name in models}
    for version in range(versions):
        fold_of = np.repeat(np.arange(folds), -(-len(dataset) // folds))[: len(dataset)]
        rng.shuffle(fold_of)
        for fold in range(folds):
            for seed, (name, skill) in enumerate(models.items()):
                table = predictions(dataset, skill, 10 * version + seed, np.flatnonzero(fold_of == fold))
                table = replace(table, fold=fold, folds=folds, dataset_version=f"{version:064}")
                paths[name].append(write_run(folder / f"{name}{version}{fold}", table))
    return paths


@pytest.mark.slow
def test_folds(dataset: Dataset, tmp_path: Path) -> None:
    paths = fold_runs(dataset, 1, 5, tmp_path)
    groups = [f"{name}={','.join(map(str, members))}" for name, members in paths.items()]
    printed = in_process("compare", "--group", groups[0], "--group", groups[1], "--unit", "fold").out
    assert "one run of" not in printed
    assert "good − poor: refused: 1 × 5 folds: the test is made for five replications of two folds" in printed
    assert "folds of one set share training images; blocks of ranks must be independent collections" in printed
    result = compare(read_tables(paths, ["test"]), ["accuracy"], "fold", resamples=FEW)
    by_test = {test["test"]: test["rows"][0] for test in result["tests"]}
    tables = {
        name: [read_predictions(run / "predictions" / "test.parquet") for run in runs] for name, runs in paths.items()
    }
    hits = {name: [float((t.predicted == t.label).mean()) for t in parts] for name, parts in tables.items()}
    difference = np.subtract(hits["good"], hits["poor"])
    assert by_test["corrected_t"]["difference"] == pytest.approx(difference.mean())
    # the fold after the test fold is for validation: three of five are trained on
    t = difference.mean() / np.sqrt((1 / 5 + 1 / 3) * difference.var(ddof=1))
    assert by_test["corrected_t"]["t"] == pytest.approx(t, rel=0.01)
    assert sum(by_test["correlated_bayes"][key] for key in ("worse", "equal", "better")) == pytest.approx(1)
    by_error = compare(read_tables(paths, ["test"]), ["brier"], "fold", resamples=FEW)["tests"]
    bayes = next(test["rows"][0] for test in by_error if test["test"] == "correlated_bayes")
    assert (bayes["a"], by_test["correlated_bayes"]["a"]) == ("good", "good")
    assert bayes["better"] > 0.95 > 0.05 > bayes["worse"]  # the smaller error is the better one
    assert by_test["correlated_bayes"]["better"] > 0.95


def test_scores_of_the_networks_of_several_folds_are_not_ranked_together(dataset: Dataset, tmp_path: Path) -> None:
    """A shift of all scores of a fold changes no order within it, but the AUC over joined folds."""
    paths = fold_runs(dataset, 1, 3, tmp_path)
    tables = read_tables(paths, ["test"])
    assert tables.networks() == 3
    result = compare(tables, ["accuracy", "auc_macro"], resamples=FEW)
    model = result["metrics"]["auc_macro"]["models"]["good"]
    (pair,) = result["metrics"]["auc_macro"]["pairs"]
    reason = "the scores are those of 3 networks, one for each fold, which cannot be ranked together"
    assert (model["value"], model["runs"], pair["difference"], pair["p"]) == (None, [None], None, None)
    assert all(reason in text for text in (model["refused"], pair["refused"], pair["p_refused"]))
    assert result["metrics"]["accuracy"]["models"]["good"]["value"] > 0.5
    by_test = {test["test"]: test["rows"] for test in result["tests"]}
    assert all(reason in row["refused"] for name in ("delong", "delong_clustered") for row in by_test[name])
    within = compare(tables, ["auc_macro"], "fold", resamples=FEW)
    assert "t" in next(test["rows"][0] for test in within["tests"] if test["test"] == "corrected_t")
    assert within["collections"]["undefined"] == ["phantom"]


def test_differences_that_are_nearly_nothing_have_a_p_value() -> None:
    assert sign_flip_p(np.full(60, 1e-10)) < 0.001  # all in favour of one model
    assert sign_flip_p(np.array([1.0, 1e-10, -1.0])) == 1.0


def test_values_that_differ_in_their_last_bits_are_ties(dataset: Dataset, tmp_path: Path) -> None:
    """The mean over seeds depends on their order in its last bits."""
    skills = {"low": 1.0, "middle": 1.5, "high": 2.0}
    seeds = [
        write_run(tmp_path / name, sites(8)(predictions(dataset, skill, number)))
        for number, (name, skill) in enumerate(skills.items())
    ]
    tables = read_tables({"a": seeds, "b": seeds[::-1], "c": [seeds[0]]}, ["test"])
    values = collections(tables, "brier").values
    assert (values[:, 0] == values[:, 1]).all()


def test_five_halvings_count_every_patient_once(dataset: Dataset, tmp_path: Path) -> None:
    tables = read_tables(fold_runs(dataset, 5, 2, tmp_path), ["test"])
    assert len(tables) == 5 * len(dataset)
    assert tables.cluster.max() + 1 == len(set(dataset.columns["group"]))
    rows = {test["test"]: test["rows"][0] for test in compare(tables, ["accuracy"], "fold", resamples=FEW)["tests"]}
    assert rows["five_by_two"]["f"] > 1
    assert rows["corrected_t"]["df"] == 9


def test_folds_that_cannot_be_tested_are_refused(dataset: Dataset, runs: dict[str, Path], tmp_path: Path) -> None:
    def reason(paths: dict[str, list[Path]]) -> str:
        result = compare(read_tables(paths, ["test"]), ["accuracy"], "fold", resamples=FEW)
        return str(next(test for test in result["tests"] if test["test"] == "corrected_t")["rows"][0]["refused"])

    assert "the predictions are not of folds" in reason({name: [runs[name]] for name in ("good", "poor")})
    paths = fold_runs(dataset, 1, 5, tmp_path / "five")
    for missing, listed in ((2, "0, 1, 3, 4"), (4, "0, 1, 2, 3")):  # the last jobs of an array are often the lost ones
        assert f"has only folds {listed} of 5; every fold must have been the test split once" in reason(
            {name: [*members[:missing], *members[missing + 1 :]] for name, members in paths.items()}
        )
    unequal = {}
    for name, skill in (("good", 2.0), ("poor", 1.0)):
        bounds = [0, 30, 60, 144]
        tables = [predictions(dataset, skill, 1, np.arange(*bounds[fold : fold + 2])) for fold in range(3)]
        unequal[name] = [
            write_run(tmp_path / f"{name}{fold}", replace(table, fold=fold, folds=3))
            for fold, table in enumerate(tables)
        ]
    assert reason(unequal).startswith("folds of 30 to 84 images: with sizes more than 20 % apart")


def test_adopted_predictions_are_compared_with_a_run(
    runs: dict[str, Path], phantom_shards: Path, tmp_path: Path
) -> None:
    """Class shares of the training images as probabilities: a model that is not ours."""
    dataset = open_dataset(phantom_shards)
    rows, shares = dataset.rows("test"), np.bincount(dataset.columns["label"][dataset.rows("train")])
    lines = [f"{key},{','.join(f'{s:.6f}' for s in shares / shares.sum())}" for key in dataset.columns["key"][rows]]
    file = tmp_path / "constant.csv"
    file.write_text("\n".join([f"key,{','.join(f'prob_{name}' for name in dataset.classes)}", *lines]) + "\n")
    in_process("adopt", str(file), "--shards", str(phantom_shards), "--run", str(tmp_path / "constant"))
    ours = write_run(tmp_path / "ours", predictions(dataset, 3.0, 1, rows))
    printed = in_process("compare", str(ours), str(tmp_path / "constant" / "predictions" / "test.parquet")).out
    assert "ours − test" in printed
    assert "it is not known which images test was trained on" in printed
    assert f"{len(rows)} images" in printed


def test_tiers_and_ranks() -> None:
    def pairs(*names: str) -> set[frozenset[str]]:
        return {frozenset(name) for name in names}

    assert separate_tiers("abcd", pairs("ac", "ad", "bc", "bd")) == [["a", "b"], ["c", "d"]]
    assert separate_tiers("abc", pairs("ac")) == [["a", "b", "c"]]  # b is separable from neither
    assert separate_tiers("abc", set()) == [["a", "b", "c"]]
    assert separate_tiers("abc", pairs("ab", "ac", "bc")) == [["a"], ["b"], ["c"]]
    assert [rank_interval("abc", pairs("ac"), name) for name in "abc"] == [[1, 2], [1, 3], [2, 3]]


def test_verdicts() -> None:
    pair: dict[str, Any] = {"a": "x", "b": "y", "p": 0.4, "difference": 0.01, "smallest": 0.013, "separable": False}
    shown = "no difference shown; this table could have shown about 1.3 points"
    assert verdict("accuracy", pair | {"not_inferior": None}, None) == shown
    close = pair | {"difference": -0.02, "not_inferior": None}  # p before the adjustment may be below 5 %
    assert verdict("accuracy", close, None) == "no difference shown"
    expected = {
        (True, True): "; equal within 2.0 points",
        (True, False): "; x loses at most 2.0 points",
        (False, True): "; y loses at most 2.0 points",
        (False, False): "; a loss of more than 2.0 points is not excluded",
    }
    for (a, b), text in expected.items():
        assert verdict("accuracy", pair | {"not_inferior": {"a": a, "b": b}}, 0.02) == shown + text
    separable = pair | {"separable": True, "not_inferior": {"a": True, "b": True}}
    assert verdict("accuracy", separable, 0.02) == "x is better; y loses at most 2.0 points"
    assert verdict("brier", separable, 0.02) == "y is better; x loses at most 0.020"
    assert [p_text(p) for p in (None, 0, 0.00012, 0.0499, 0.5, 1)] == ["–", "< 0.0001", "0.00012", "0.0499", "0.5", "1"]


class Page(HTMLParser):
    """The tags of a page and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.slow
def test_names_with_markup_in_a_browser(runs: dict[str, Path], tmp_path: Path) -> None:
    """Names of models, classes and collections are shown as they are, in tables and in figures."""
    strange = "<script>alert(1)</script>$x_{"
    classes = ("a$b^$", "<b>bold", "c", "$\\frac{")

    def change(table: Predictions) -> Predictions:
        named = sites(7)(table)
        return replace(
            named, classes=classes, dataset=np.array([f"<i>{name}$" for name in named.dataset], dtype=object)
        )

    paths = {name: changed(runs[name], tmp_path / name, change) for name in runs}
    groups = [f"{strange}={paths['good']}", f"b $ c={paths['same']}", f"d={paths['poor']}"]
    words = [word for group in groups for word in ("--group", group)]
    in_process("compare", *words, "--metric", "accuracy", "--metric", "auc_macro", "--out", str(tmp_path / "out"))
    page = tmp_path / "out" / "index.html"
    shown = Page(browser(page, tmp_path / "profile", "--dump-dom"))
    assert not shown.tags & {"script", "b$", "i"}
    assert strange in shown.text
    assert shown.text.count(f"{strange} − b $ c") >= 2  # in the table, and in the figure's labels
    for name in (*classes[:2], "<i>site6$"):
        assert name in shown.text
    for width in (1200, 400):
        shot = tmp_path / f"{width}.png"
        browser(page, tmp_path / f"profile{width}", f"--screenshot={shot}", width=width)
        assert shot.stat().st_size > 20_000
