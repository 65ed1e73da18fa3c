"""`benchmark cross --methods`: what methods may differ in, and the table of what each one gains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, TINY, in_process
from sklearn.metrics import roc_auc_score

from brain_dist.benchmarking.cross import evaluations_of, open_collections, plan_pairs
from brain_dist.benchmarking.cross_plan import plan_text
from brain_dist.benchmarking.folder import Folder
from brain_dist.benchmarking.grid import OF_METHOD, plan
from brain_dist.benchmarking.run import read_variants
from brain_dist.comparison.crossing import Judged, entry, gain, tumour_auc
from brain_dist.config import load
from brain_dist.errors import UserError
from brain_dist.inference.run import with_run_classes
from brain_dist.judging.evaluation import write_evaluation
from brain_dist.judging.predictions import predictions_from_logits, read_predictions
from brain_dist.store.access import open_data
from brain_dist.store.dataset import open_dataset

SETTINGS = [
    *TINY[2:], "--run.device", "cpu", "--train.precision", "fp32", "--train.zero_stage", "0", "--train.epochs", "1",
    "--train.global_batch", "16", "--train.micro_batch", "16", "--optim.lr", "3e-3", "--train.best", "f1_macro",
]  # fmt: skip


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """``one`` with four classes and masks, to train on; ``two`` with two classes, to test on only."""
    base = tmp_path_factory.mktemp("ablation")
    tumours = ["glioma", "meningioma", "pituitary"]
    folders = {
        "one": {name: [name] for name in ("notumor", *tumours)}, "two": {"notumor": ["notumor"], "tumor": tumours}
    }  # fmt: skip
    for number, name in enumerate(folders):
        size = ["--patients", "24", "--slices", "2", "--size", "64", "--seed", str(number), "--workers", "1"]
        in_process("shard", "phantom", "--out", str(base / "images" / name), *size)
        part = {
            "dataset": name, "folders": folders[name],
            "patients": {"file": "patients.csv", "id": "id", "patient": "patient"},
            "masks": {"folder": "masks"}, "ignore": ["masks"],
        }  # fmt: skip
        recipe = {"name": name, "classes": list(folders[name]), "parts": [part]}
        (base / f"{name}.yaml").write_text(json.dumps(recipe))
        split = ["--split", "test"] if name == "two" else ["--fractions", "0.6,0.2,0.2"]
        options = ["--recipe", str(base / f"{name}.yaml"), "--source", str(base / "images" / name), *split]
        in_process("shard", "build", *options, "--out", str(base / name), "--workers", "1")
    return [base / name for name in folders]


@pytest.fixture
def methods(tmp_path: Path) -> str:
    (tmp_path / "plain.yaml").write_text("augment: {}\n")
    (tmp_path / "curves.yaml").write_text("augment: {curves: 0.8}\ndata: {stretch: true}\n")
    return f"{tmp_path / 'plain.yaml'},{tmp_path / 'curves.yaml'}"


def test_the_ablation_has_a_row_for_each_method_and_its_gain(
    collections: list[Path], methods: str, tmp_path: Path
) -> None:
    folder = Folder(tmp_path / "out")
    variants = read_variants("test_convnext", [], SETTINGS, methods)
    config = variants["plain"]
    datasets = open_collections(",".join(map(str, collections)), config)
    sources, pairs = plan_pairs(datasets, config, folder, ["one"])
    assert {(pair.source, pair.test) for pair in pairs} == {("one", "one"), ("one", "two")}
    tests = evaluations_of(sources, pairs, datasets)
    grid = plan(variants, [0, 1], None, sources, folder.out, 1, tests, OF_METHOD)
    folder.claim(grid, "cross", plan_text(datasets, pairs))
    for cell in grid.cells:  # the networks guess: `curves` is right more often than `plain`
        own = open_data(cell.config.data, folder.cells)
        for test in cell.tests:
            dataset = own if test.shards is None else with_run_classes(open_dataset(test.shards), own.classes)
            rows = dataset.rows("test")
            logits = np.random.default_rng([cell.seed, len(rows)]).normal(size=(len(rows), len(dataset.classes)))
            right = dataset.columns["label"][rows]
            logits[np.arange(len(rows)), right] += {"plain": 0.3, "curves": 2.0}[cell.model]
            table = predictions_from_logits(dataset, rows, logits, run="drawn", step=1)
            known = np.full(len(rows), "", dtype=object)
            write_evaluation(folder.predictions(cell.key, test.name), replace(table, known=known), rows)
    printed = in_process("benchmark", "table", str(folder.out)).out
    assert (folder.out / "cross.md").read_text() in printed
    text = (folder.out / "ablation.md").read_text()
    assert text in printed
    assert "| plain | – |" in text
    assert "| curves | `data.stretch: true`, `augment.curves: 0.8` |" in text
    assert "## Trained on one, tested on one (internal)" in text
    section = text.partition("## Trained on one, tested on two")[2]
    first, second = (line for line in section.splitlines() if line.startswith(("| plain", "| curves")))
    rows_of = json.loads((folder.out / "cross.json").read_text())["rows"]
    values = {row["model"]: row["balanced_accuracy"]["value"] for row in rows_of if row["test"] == "two"}
    assert f"| {100 * (values['curves'] - values['plain']):+.1f} ±" in second
    assert "+" not in first


def test_methods_may_differ_in_declared_settings_only(methods: str, tmp_path: Path, collections: list[Path]) -> None:
    (tmp_path / "wider.yaml").write_text("optim: {lr: 0.1}\n")
    words = ["--sources", ",".join(map(str, collections)), "--models", "test_convnext", "--seeds", "0", *SETTINGS]
    given = ["--methods", f"{methods},{tmp_path / 'wider.yaml'}", "--train", "one"]
    error = in_process("benchmark", "cross", str(tmp_path / "out"), *words, *given, expect=2).err
    assert "optim.lr is 0.003 for plain and 0.1 for wider; methods may differ in augment.*, data.stretch," in error
    for options, message in (
        (["--methods", f"{methods},{methods}"], "must be YAML files with different names"),
        (["--methods", methods, "--models", "a,b"], "--methods compares trainings of one model; --models names a, b"),
        (["--train", "on"], "--train on (did you mean one?): must be one of one, two"),
    ):
        assert message in in_process("benchmark", "cross", str(tmp_path / "out"), *words, *options, expect=2).err


def judged(prob: np.ndarray, label: np.ndarray, cluster: np.ndarray, classes: tuple[str, ...]) -> Judged:
    return Judged(classes, label, cluster, prob, {}, tuple(range(len(prob))))


def test_a_gain_is_paired_and_the_tumours_auc_is_scikit_learn_s() -> None:
    rng = np.random.default_rng(0)
    label, cluster = rng.integers(0, 2, 200), np.arange(200) // 5
    noise = rng.normal(size=(2, 200))
    weak, strong = (1 / (1 + np.exp(-(noise + by * (2 * label - 1)))) for by in (0.5, 0.6))
    a, b = (judged(np.stack([1 - p, p], axis=2), label, cluster, ("notumor", "tumor")) for p in (strong, weak))
    result = gain(a, b)
    values = [entry(each)["balanced_accuracy"]["value"] for each in (a, b)]
    assert result["value"] == pytest.approx(values[0] - values[1])
    within = [entry(each)["within"]["value"] for each in (a, b)]
    assert result["within"]["value"] == pytest.approx(within[0] - within[1])
    low, high = result["within"]["interval"]
    alone = entry(a)["within"]["interval"]
    assert high - low < 0.5 * (alone[1] - alone[0]), "the same images: narrower than that of each alone"
    swapped = replace(a, seeds=(1, 2))
    paired = gain(swapped, b)  # seed 1 is the only one that both have
    assert paired["of_seeds"] == [1]
    assert paired["seeds"] == pytest.approx([
        entry(swapped)["balanced_accuracy"]["seeds"][0] - entry(b)["balanced_accuracy"]["seeds"][1]
    ])  # fmt: skip
    assert gain(replace(a, seeds=(5, 6)), b) == {"refused": "no seed is finished in both"}
    with pytest.raises(UserError, match="same images"):
        gain(a, replace(b, label=1 - b.label))
    four = rng.dirichlet(np.ones(4), (1, 200))
    kinds = rng.integers(0, 4, 200)
    of_four = judged(four, kinds, cluster, ("glioma", "notumor", "pituitary", "meningioma"))
    assert tumour_auc(of_four)["value"] == pytest.approx(roc_auc_score(kinds != 1, 1 - four[0, :, 1]))
    assert tumour_auc(replace(of_four, label=np.ones(200, dtype=np.int64))) == {}


@pytest.mark.slow
def test_a_real_ablation_with_every_setting(collections: list[Path], tmp_path: Path) -> None:
    names = ["plain", "transplants", "all"]
    methods = ",".join(str(ROOT / "configs" / "external" / f"{name}.yaml") for name in names)
    words = ["--sources", ",".join(map(str, collections)), "--models", "test_convnext", "--seeds", "0", *SETTINGS]
    out = tmp_path / "out"
    in_process("benchmark", "cross", str(out), *words, "--methods", methods, "--train", "one")
    in_process("benchmark", "probe", str(out), "--limit", "30")
    text = in_process("benchmark", "table", str(out)).out
    for name in names:
        assert text.count(f"\n| {name} | ") >= 3, "its settings, and a row for each test"
    assert "source named right" in text
    record = json.loads((out / "benchmark.json").read_text())
    assert len(record["cells"]) == 3
    assert len(list((out / "costs").glob("*.json"))) == 1  # the methods train one network
    tables = [read_predictions(Folder(out).predictions(cell["cell"], "two")) for cell in record["cells"]]
    assert all(not np.array_equal(tables[0].prob, table.prob) for table in tables[1:])


def test_every_method_of_the_project_fits_the_conditions() -> None:
    root = ROOT / "configs" / "external"
    base = load(["--config", str(root / "base.yaml")])
    names = []
    for file in sorted(root.glob("*.yaml")):
        if file.stem != "base":
            config = load(["--config", str(root / "base.yaml"), "--config", str(file)])
            names.append(file.stem)
            assert (config == base) == (file.stem == "plain")
    assert len(names) >= 8
