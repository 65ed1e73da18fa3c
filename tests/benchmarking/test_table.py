"""The table of a benchmark, from predictions of made-up models."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from damage import DAMAGES, damage
from helpers import in_process, largest_file

from brain_dist.benchmarking.conditions import require_same_conditions
from brain_dist.benchmarking.folder import Folder
from brain_dist.benchmarking.grid import PUBLISHED, Grid, Source, plan
from brain_dist.benchmarking.grid import Test as Evaluation
from brain_dist.benchmarking.results import training_seconds
from brain_dist.benchmarking.run import default_processes
from brain_dist.benchmarking.summary import TITLES
from brain_dist.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from brain_dist.errors import UserError
from brain_dist.judging.evaluation import write_evaluation
from brain_dist.judging.metrics import evaluate_predictions
from brain_dist.judging.predictions import predictions_from_logits
from brain_dist.judging.shortcuts import restrict
from brain_dist.pages.text import percent
from brain_dist.store.dataset import Dataset, open_dataset

SKILLS = {"good": 3.0, "same": 3.0, "poor": 0.5}
SEEDS = [0, 1, 2]
COSTS_OF_NET = {
    "parameters": 1_000_000, "gmacs": 1.5, "latency_ms": 2.0, "latency_p95_ms": 3.0, "best_batch": 8, "batch_ms": 9.0,
    "batch_p95_ms": 9.5, "images_per_s": 888.9, "peak_memory_mb": 100.0, "joules_per_image": None, "size": 32,
    "precision": "fp32", "device": "some processor", "threads": 1, "torch": "2", "cpu_share": 1.0, "busy": False,
}  # fmt: skip
RATES = {"good": 1e-3, "same": 1e-3, "poor": 3e-4}


@pytest.fixture(scope="module")
def dataset(phantom_shards: Path) -> Dataset:
    return open_dataset(phantom_shards)


def make_grid(dataset: Dataset, out: Path, models: tuple[str, ...] = tuple(SKILLS), folds: int | None = None) -> Grid:
    train = TrainConfig(precision="fp32")
    variants = {
        name: Config(model=ModelConfig(name=f"net_{name}"), optim=OptimConfig(lr=RATES[name]), train=train)
        for name in models
    }
    data = DataConfig(shards=str(dataset.root))
    return plan(variants, SEEDS, folds, [Source(dataset.name, dataset.version, dataset.classes, data)], out)


def finish(grid: Grid, folder: Folder, dataset: Dataset, **environment: Any) -> None:
    """Write what training and evaluation leave behind for every cell."""
    hardness = np.random.default_rng(100).normal(size=(len(dataset), len(dataset.classes)))
    for number, cell in enumerate(grid.cells):
        rows = np.arange(len(dataset))
        if cell.fold is not None:
            rows = rows[rows % len(grid.folds) == cell.fold]
        noise = np.random.default_rng(number).normal(size=hardness.shape)
        logits = hardness + 0.5 * noise + SKILLS[cell.model] * np.eye(len(dataset.classes))[dataset.columns["label"]]
        table = predictions_from_logits(dataset, rows, logits[rows], run=cell.key, step=12)
        table = dataclasses.replace(table, fold=cell.fold)
        write_evaluation(folder.predictions(cell.key), table, rows)
        content = {
            "dataset_version": dataset.version,
            "precision": "fp32",
            "world_size": 1,
            "versions": {},
        } | environment
        (folder.run(cell.key) / "environment.json").write_text(json.dumps(content))


@pytest.fixture
def benchmark(dataset: Dataset, tmp_path: Path) -> tuple[Grid, Folder]:
    """A finished benchmark of three models and three seeds."""
    grid, folder = make_grid(dataset, tmp_path), Folder(tmp_path)
    folder.claim(grid, "brain-dist benchmark run")
    finish(grid, folder, dataset)
    return grid, folder


def costs_file(folder: Folder, model: str) -> Path:
    file = folder.costs(folder.record(), model)
    assert file is not None
    return file


def rows(folder: Folder, name: str) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = pq.read_table(folder.out / f"{name}.parquet").to_pylist()
    return result


def test_numbers_are_those_of_the_metrics_functions(benchmark: tuple[Grid, Folder], dataset: Dataset) -> None:
    grid, folder = benchmark
    in_process("benchmark", "table", str(folder.out))
    cells = {row["cell"]: row for row in rows(folder, "cells")}
    metrics = {
        cell.key: json.loads(folder.predictions(cell.key).with_suffix(".json").read_text()) for cell in grid.cells
    }
    for key, row in cells.items():
        assert {name: row[name] for name in TITLES} == {name: metrics[key][name] for name in TITLES}
        for name in dataset.classes:
            assert row[f"sensitivity:{name}"] == metrics[key]["per_class"][name]["sensitivity"]
            assert row[f"specificity:{name}"] == metrics[key]["per_class"][name]["specificity"]
    table = {row["model"]: row for row in rows(folder, "table")}
    names = [name.removesuffix("_mean") for name in table["good"] if name.endswith("_mean")]
    assert len(names) == len(TITLES) + 2 * len(dataset.classes)
    for model, row in table.items():
        of_model = [cells[cell.key] for cell in grid.cells if cell.model == model]
        assert (row["seeds"], row["complete"], row["learning_rate"]) == (3, True, RATES[model])
        for name in names:
            values = [cell[name] for cell in of_model]
            assert row[f"{name}_mean"] == pytest.approx(np.mean(values), abs=1e-9)
            assert row[f"{name}_sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-9)
            assert row[f"{name}_refused"] or row[f"{name}_low"] <= row[f"{name}_mean"] <= row[f"{name}_high"], name
    for row in table.values():
        assert (row["ece_low"], row["ece_high"]) == (None, None)
        assert row["ece_refused"].startswith("resampling raises a calibration error; compare it with what right")
    assert "- expected calibration error: resampling raises" in (folder.out / "table.md").read_text()
    assert [table[model]["tier"] for model in SKILLS] == [1, 1, 2]
    assert [(table[model]["rank_low"], table[model]["rank_high"]) for model in SKILLS] == [(1, 2), (1, 2), (3, 3)]


def test_the_same_cells_give_the_same_bytes(benchmark: tuple[Grid, Folder]) -> None:
    _, folder = benchmark
    contents = []
    for _ in range(2):
        in_process("benchmark", "table", str(folder.out))
        contents.append([(folder.out / f"{name}.parquet").read_bytes() for name in ("table", "cells")])
    assert contents[0] == contents[1]


def test_both_spreads_are_labelled(benchmark: tuple[Grid, Folder]) -> None:
    _, folder = benchmark
    printed = in_process("benchmark", "table", str(folder.out)).out
    assert "± sd of seeds" in printed
    assert "of patients" in printed
    assert max(map(len, printed.splitlines()[:10])) <= 80
    page = (folder.out / "table.md").read_text()
    (good,) = [row for row in rows(folder, "table") if row["model"] == "good"]
    mean, spread, low, high = (100 * good[f"accuracy_{kind}"] for kind in ("mean", "sd", "low", "high"))
    assert f"{mean:.1f} ± {spread:.1f} ({low:.1f} to {high:.1f})" in page
    assert "standard deviation over seeds (what another training could change)" in page
    assert "95 % interval of the mean over patients" in page
    assert "Not measured: parameters (M), GMACs, 1 image" in page


def test_missing_cells_are_marked_and_ranks_refused(benchmark: tuple[Grid, Folder]) -> None:
    grid, folder = benchmark
    lost = next(cell for cell in grid.cells if (cell.model, cell.seed) == ("poor", 1))
    folder.predictions(lost.key).unlink()
    printed = in_process("benchmark", "table", str(folder.out)).out
    assert "no ranks: 1 of 9 cells are missing: ranks would compare incomplete blocks" in " ".join(printed.split())
    assert "missing: poor, seed 1" in printed
    table = {row["model"]: row for row in rows(folder, "table")}
    assert [table[model]["seeds"] for model in SKILLS] == [3, 3, 2]
    assert [table[model]["complete"] for model in SKILLS] == [True, True, False]
    assert {row["tier"] for row in table.values()} == {None}
    assert {row["rank_refused"][:28] for row in table.values()} == {"1 of 9 cells are missing: ran"[:28]}
    assert [row["cell"] for row in rows(folder, "cells") if row["state"] == "missing"] == [lost.key]


def test_ranks_that_slurm_decides_are_those_of_the_cells(dataset: Dataset, tmp_path: Path) -> None:
    """A benchmark of --slurm goes on without it, with the same number of ranks and with no other."""
    grid, folder = make_grid(dataset, tmp_path, ("good",)), Folder(tmp_path)
    variants = {"good": grid.cells[0].config}
    assert default_processes(variants, folder) == 1
    folder.claim(dataclasses.replace(grid, processes=None), "brain-dist benchmark run --slurm")
    assert folder.record()["processes"] is None
    finish(grid, folder, dataset, world_size=4)
    assert default_processes(variants, folder) == 4
    here = dataclasses.replace(grid, processes=4)
    require_same_conditions(here.record(), folder)
    folder.claim(here, "brain-dist benchmark run")
    folder.claim(dataclasses.replace(grid, processes=None), "brain-dist benchmark run --slurm")
    message = r"number of ranks was 4 for good, seed 0 and would be 2 now; give --processes 4"
    with pytest.raises(UserError, match=message):
        require_same_conditions(dataclasses.replace(grid, processes=2).record(), folder)


def test_a_seed_counts_when_all_its_folds_are_there(dataset: Dataset, tmp_path: Path) -> None:
    grid, folder = make_grid(dataset, tmp_path, folds=3), Folder(tmp_path)
    folder.claim(grid, "brain-dist benchmark run")
    finish(grid, folder, dataset)
    lost = next(cell for cell in grid.cells if (cell.model, cell.seed, cell.fold) == ("good", 2, 1))
    folder.predictions(lost.key).unlink()
    in_process("benchmark", "table", str(folder.out))
    table = {row["model"]: row for row in rows(folder, "table")}
    assert [table[model]["seeds"] for model in SKILLS] == [2, 3, 3]
    assert {row["images"] for row in table.values()} == {len(dataset)}
    cells = [cell for cell in grid.cells if (cell.model, cell.seed) == ("good", 0)]
    tables = [pq.read_table(folder.predictions(cell.key)).to_pylist() for cell in cells]
    label, prob = [], []
    for row in sorted((row for part in tables for row in part), key=lambda row: row["row"]):
        label.append(row["label"])
        prob.append([row[f"prob_{name}"] for name in dataset.classes])
    pooled = evaluate_predictions(np.array(label), np.array(prob, np.float32), dataset.classes)
    from brain_dist.benchmarking.results import read_benchmark

    (part,) = read_benchmark(folder).parts
    assert part.summary is not None
    assert part.summary.values["good"][0]["accuracy"] == pooled["accuracy"]
    for row in table.values():  # each fold has a network of its own, and an AUC would rank their scores together
        assert row["auc_macro_mean"] is row["auc_macro_sd"] is row["auc_macro_low"] is None
        assert row["auc_macro_refused"].startswith("the scores are those of 3 networks, one for each fold")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dataset_version": "f" * 64},
            "was trained on version ffffffffffff of phantom, and the benchmark is of version",
        ),
        ({"precision": "amp"}, "the conditions are not unified: train.precision was fp32 for good, seed 0 and amp for"),
        ({"world_size": 2}, "the conditions are not unified: the number of ranks was 1 for good, seed 0 and 2 for"),
    ],
)
def test_cells_of_other_conditions_are_refused(
    benchmark: tuple[Grid, Folder], change: dict[str, Any], message: str
) -> None:
    grid, folder = benchmark
    file = folder.run(grid.cells[4].key) / "environment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    error = in_process("benchmark", "table", str(folder.out), expect=2).err
    assert message in error
    assert f"delete {folder.run(grid.cells[4].key)}" in error


def test_a_table_without_cells_or_grid_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    assert "benchmark.json does not exist" in in_process("benchmark", "table", str(tmp_path), expect=2).err
    Folder(tmp_path).claim(make_grid(dataset, tmp_path), "brain-dist benchmark run")
    assert "no cell in" in in_process("benchmark", "table", str(tmp_path), expect=2).err


@pytest.mark.parametrize("content", ["{", "[]", '{"models": []}'])
def test_a_damaged_grid_is_written_again_after_its_deletion(dataset: Dataset, tmp_path: Path, content: str) -> None:
    grid, folder = make_grid(dataset, tmp_path), Folder(tmp_path)
    folder.claim(grid, "brain-dist benchmark run")
    (tmp_path / "benchmark.json").write_text(content)
    for ask in (folder.record, lambda: folder.claim(grid, "brain-dist benchmark run")):
        with pytest.raises(UserError, match=r"benchmark\.json is damaged \(.*\); delete it and give the same command"):
            ask()
    (tmp_path / "benchmark.json").unlink()
    folder.claim(grid, "brain-dist benchmark run")
    assert len(folder.record()["cells"]) == len(grid.cells)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_record_of_a_training_is_named(benchmark: tuple[Grid, Folder], kind: str) -> None:
    grid, folder = benchmark
    run = folder.run(grid.cells[0].key)
    damage(run / "environment.json", kind)
    for command in (["benchmark", "table", str(folder.out)], ["benchmark", "page", str(folder.out)]):
        error = in_process(*command, expect=2).err
        assert f"{run / 'environment.json'} is damaged (" in error
        assert error.endswith(f"; delete {run}, and run the benchmark again\n")


def test_a_folder_of_a_version_without_a_setting_that_is_off_is_continued(dataset: Dataset, tmp_path: Path) -> None:
    grid, folder = make_grid(dataset, tmp_path), Folder(tmp_path)
    folder.claim(grid, "brain-dist benchmark run")
    record = folder.record()
    assert record["common"].pop("augment.curves") == 0
    (tmp_path / "benchmark.json").write_text(json.dumps(record))
    folder.claim(grid, "brain-dist benchmark run")
    assert folder.record()["common"]["augment.curves"] == 0
    record["common"]["augment.curves"] = 0.5
    (tmp_path / "benchmark.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"augment\.curves is 0\.5 in"):
        folder.claim(grid, "brain-dist benchmark run")


@pytest.mark.slow
def test_compare_takes_the_models_of_a_benchmark(benchmark: tuple[Grid, Folder]) -> None:
    grid, folder = benchmark
    groups = [
        f"{model}={','.join(str(folder.run(cell.key)) for cell in grid.cells if cell.model == model)}"
        for model in SKILLS
    ]
    metric = ["--metric", "accuracy"]
    expected = in_process("compare", *(word for group in groups for word in ("--group", group)), *metric).out
    assert in_process("compare", "--benchmark", str(folder.out), *metric).out == expected
    folder.predictions(grid.cells[0].key).unlink()
    printed = in_process("compare", "--benchmark", str(folder.out), *metric).out
    assert "good is a mean of 2 runs" in printed


@pytest.mark.slow
def test_costs_that_were_disturbed_are_measured_again(dataset: Dataset, tmp_path: Path) -> None:
    config = Config(
        model=ModelConfig(name="test_convnext"), data=DataConfig(size=32), train=TrainConfig(precision="fp32")
    )  # fmt: skip
    source = Source(dataset.name, dataset.version, dataset.classes, DataConfig(shards=str(dataset.root)))
    folder = Folder(tmp_path)
    variants = {"net": config, "other": replace(config, model=replace(config.model, drop=0.1))}
    folder.claim(plan(variants, [0], None, [source], tmp_path), "brain-dist benchmark run")
    (tmp_path / "costs").mkdir()
    net, other = (costs_file(folder, model) for model in variants)
    net.write_text(json.dumps({**COSTS_OF_NET, "busy": True}))
    other.write_text(undisturbed := json.dumps(COSTS_OF_NET))
    in_process("benchmark", "costs", str(tmp_path))
    assert json.loads(net.read_text())["parameters"] > 100_000
    assert other.read_text() == undisturbed
    error = in_process("benchmark", "costs", str(tmp_path), "--model", "othr", expect=2).err
    assert "--model othr (did you mean other?): the models are net, other" in error


def test_costs_belong_to_the_settings_of_a_network(dataset: Dataset, tmp_path: Path) -> None:
    """A model of the same name and other settings is another network, whose costs are not known."""
    source = Source(dataset.name, dataset.version, dataset.classes, DataConfig(shards=str(dataset.root)))
    folder = Folder(tmp_path)

    def claim(config: Config) -> Path:
        grid = plan({"net": config}, [0], None, [source], tmp_path)
        folder.claim(grid, "brain-dist benchmark run")
        for cell in grid.cells:
            rows = dataset.rows("test")
            logits = np.eye(len(dataset.classes))[dataset.columns["label"][rows]]
            table = predictions_from_logits(dataset, rows, logits, run=cell.key, step=1)
            write_evaluation(folder.predictions(cell.key), table, rows)
        return costs_file(folder, "net")

    base = Config(model=ModelConfig(name="vgg11"), train=TrainConfig(precision="fp32"))
    measured = claim(base)
    measured.parent.mkdir()
    measured.write_text(json.dumps(COSTS_OF_NET))
    in_process("benchmark", "table", str(tmp_path))
    assert [row["gmacs"] for row in rows(folder, "costs")] == [1.5]
    narrow = replace(base, model=replace(base.model, options={"width": 64}))
    assert claim(narrow) != measured
    in_process("benchmark", "table", str(tmp_path))
    assert "gmacs" not in rows(folder, "costs")[0]
    assert "Not measured: parameters (M), GMACs" in (tmp_path / "table.md").read_text()
    same = replace(base, model=replace(base.model, pretrained=True), optim=OptimConfig(lr=1e-4))
    assert claim(same) == measured  # other weights and another rate, but the same network
    in_process("benchmark", "table", str(tmp_path))
    assert [row["gmacs"] for row in rows(folder, "costs")] == [1.5]


@pytest.mark.parametrize("content", ["", '{"busy": fal', "[]", '{"busy": true}', "\x80"])
def test_damaged_costs_are_named(benchmark: tuple[Grid, Folder], content: str) -> None:
    _, folder = benchmark
    file = costs_file(folder, "good")
    file.parent.mkdir()
    file.write_bytes(content.encode("latin-1"))
    error = in_process("benchmark", "table", str(folder.out), expect=2).err
    assert f"{file} is damaged (" in error
    assert error.endswith(f"; measure it again with `brain-dist benchmark costs {folder.out}`\n")


def test_a_folder_that_cannot_be_written_is_one_line(benchmark: tuple[Grid, Folder]) -> None:
    _, folder = benchmark
    for arguments in (["page", str(folder.out)], ["costs", str(folder.out), "--model", "good"]):
        with largest_file(1000):
            error = in_process("benchmark", *arguments, expect=2).err
        assert "cannot be written (File too large); make it writable" in error
        assert error.count("\n") == 1


def test_one_model_has_no_rank(dataset: Dataset, tmp_path: Path) -> None:
    grid, folder = make_grid(dataset, tmp_path, models=("good",)), Folder(tmp_path)
    folder.claim(grid, "brain-dist benchmark run")
    finish(grid, folder, dataset)
    assert "no ranks: one model" in in_process("benchmark", "table", str(tmp_path)).out


@pytest.mark.slow
def test_the_page_of_a_published_split_counts_what_its_table_counts(dataset: Dataset, tmp_path: Path) -> None:
    models = {name: Config(model=ModelConfig(name=name), train=TrainConfig(precision="fp32")) for name in ("a", "b")}
    data, tests = DataConfig(shards=str(dataset.root)), (Evaluation(), Evaluation(PUBLISHED, allow_known=True))
    source = Source(dataset.name, dataset.version, dataset.classes, data, tests)
    grid, folder = plan(models, [0], None, [source], tmp_path), Folder(tmp_path)
    folder.claim(grid, "brain-dist benchmark run")
    test_rows = dataset.rows("test")
    known = np.where(np.arange(len(test_rows)) % 3, "", "same group").astype(object)
    for cell in grid.cells:
        logits = np.random.default_rng(int(cell.model == "a")).normal(size=(len(test_rows), len(dataset.classes)))
        table = predictions_from_logits(dataset, test_rows, logits, run=cell.key, step=1)
        table.patient[::4] = None
        for test in tests:
            changed = dataclasses.replace(table, known=known, allow_known=test.allow_known)
            write_evaluation(folder.predictions(cell.key, test.name), changed, test_rows)
    in_process("benchmark", "page", str(tmp_path))
    page = (tmp_path / "index.html").read_text()
    counted = dataclasses.replace(table, known=known).headline
    without = sum(patient is None for patient in counted.patient)
    assert f"{without} of {len(counted)} test images have no known patient" in page
    (stored,) = (tmp_path / "shortcuts").iterdir()
    scores = restrict(json.loads(stored.read_text()), counted)["baselines"]
    best = max(score["accuracy"] for score in scores.values())
    assert f"alone reaches {percent(best)} on the same images" in page
    assert "Accuracy without images that training knew" in page
    assert f"<td>{percent(scores['border']['accuracy'])}</td>" in page
    assert f"training knew all but {len(counted)} of {len(set(counted.group))} groups" in page
    assert "copies, and patients where they are known; results with test images that share them with the" in page
    assert "Settings differ in model.* and the learning rate only." in page
    folder.predictions(grid.cells[0].key, PUBLISHED).unlink()
    in_process("benchmark", "page", str(tmp_path))
    assert "1 cell is missing." in (tmp_path / "index.html").read_text()


def test_time_of_a_training_leaves_out_pauses_and_repeated_steps(tmp_path: Path) -> None:
    # 10 s until step 0, 5 s a step; killed after step 1, a pause of 1000 s, 20 s until step 2
    times = [110.0, 115.0, 1140.0, 1145.0]
    lines = [json.dumps({"kind": "train", "step": step, "time": time}) for step, time in enumerate(times)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    starts = [{"attempt": 1, "step": 0, "time": 100.0}, {"attempt": 2, "step": 2, "time": 1120.0}]
    (tmp_path / "attempts.jsonl").write_text("\n".join(map(json.dumps, starts)) + "\n")
    assert training_seconds(tmp_path) == 10 + 5 + 20 + 5
