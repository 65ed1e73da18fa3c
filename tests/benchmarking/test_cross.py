"""`brain-dist benchmark cross`: real trainings on small collections that share images, patients and classes in part."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import browser
from damage import DAMAGES, damage
from helpers import TINY, in_process
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from brain_dist.audit.wording import COLLECTION_ROWS
from brain_dist.benchmarking.cross import evaluations_of, open_collections, plan_pairs
from brain_dist.benchmarking.cross_plan import plan_text
from brain_dist.benchmarking.folder import Folder
from brain_dist.benchmarking.grid import plan
from brain_dist.benchmarking.matrix import read_matrix, write_matrix
from brain_dist.benchmarking.matrix_text import markdown, overlaps
from brain_dist.benchmarking.page_text import _elsewhere
from brain_dist.benchmarking.results import read_benchmark
from brain_dist.benchmarking.run import read_variants
from brain_dist.benchmarking.trainings import training_commands
from brain_dist.common.progress import no_progress
from brain_dist.comparison.crossing import Judged, confounded, drop, entry, gain
from brain_dist.config import load
from brain_dist.errors import UserError
from brain_dist.inference.known import known_images, known_within
from brain_dist.inference.run import with_run_classes
from brain_dist.judging.evaluation import write_evaluation
from brain_dist.judging.predictions import Predictions, predictions_from_logits, read_predictions
from brain_dist.store.access import open_data
from brain_dist.store.dataset import Dataset, open_dataset

FOUR = ("glioma", "meningioma", "notumor", "pituitary")
SETTINGS = [
    *TINY[2:], "--run.device", "cpu", "--train.precision", "fp32", "--train.zero_stage", "0", "--train.epochs", "2",
    "--train.global_batch", "16", "--train.micro_batch", "16", "--optim.lr", "3e-3",
]  # fmt: skip


def build(base: Path, name: str, images: Path, folders: dict[str, list[str]], *options: str) -> Path:
    """Shards of some of the phantoms' folders."""
    part = {"dataset": name, "folders": folders, "patients": {"file": "patients.csv", "id": "id", "patient": "patient"}}
    (base / f"{name}.yaml").write_text(json.dumps({"name": name, "classes": list(folders), "parts": [part]}))
    arguments = ["--recipe", str(base / f"{name}.yaml"), "--source", str(images), "--out", str(base / name)]
    in_process("shard", "build", *arguments, "--workers", "1", *options)
    return base / name


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``alpha`` and ``beta`` of four classes, where beta has some of alpha's patients' pictures; ``gamma`` of two."""
    base = tmp_path_factory.mktemp("collections")
    for number, name in enumerate(("a", "b", "c")):
        size = ["--patients", "32", "--slices", "2", "--size", "96", "--seed", str(number), "--workers", "1"]
        in_process("shard", "phantom", "--out", str(base / "images" / name), *size)
    own = {name: [name] for name in FOUR}
    shared = sorted((base / "images" / "a" / "glioma").iterdir())[:12]
    for path in shared:
        shutil.copyfile(path, base / "images" / "b" / "glioma" / f"copy{path.name}")
    with (base / "images" / "b" / "patients.csv").open("a") as file:
        file.writelines(f"copy{path.stem},glioma,{path.stem}\n" for path in shared)
    two = {"notumor": ["notumor"], "tumor": ["glioma", "meningioma", "pituitary"]}
    shares = ["--fractions", "0.6,0.1,0.3"]
    return {
        "alpha": build(base, "alpha", base / "images" / "a", own, *shares),
        "beta": build(base, "beta", base / "images" / "b", own, *shares),
        "gamma": build(base, "gamma", base / "images" / "c", two, *shares),
    }


def arguments(shards: list[Path], seeds: str) -> list[str]:
    return ["--sources", ",".join(map(str, shards)), "--models", "test_convnext", "--seeds", seeds, *SETTINGS]


@pytest.fixture(scope="module")
def crossed(collections: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross benchmark of two seeds whose networks guess: their predictions are drawn, nothing is trained."""
    return drawn_benchmark(list(collections.values()), tmp_path_factory.mktemp("crossed") / "out")


def drawn_benchmark(shards: list[Path], out: Path) -> Path:
    """A cross benchmark with drawn predictions."""
    folder = Folder(out)
    (config,) = read_variants("test_convnext", [], SETTINGS).values()
    datasets = open_collections(",".join(map(str, shards)), config)
    sources, pairs = plan_pairs(datasets, config, folder)
    grid = plan(
        {"test_convnext": config}, [0, 1], None, sources, folder.out, 1, evaluations_of(sources, pairs, datasets)
    )
    folder.claim(grid, "cross", plan_text(datasets, pairs))
    known: dict[tuple[str, str], np.ndarray] = {}
    for cell in grid.cells:
        own = open_data(cell.config.data, folder.cells)
        for test in cell.tests:
            dataset = own if test.shards is None else with_run_classes(open_dataset(test.shards), own.classes)
            rows = dataset.rows("test")
            pair = (cell.source, test.name)
            if pair not in known and test.shards is None:
                known[pair] = known_within(own, rows, selected=False)
            elif pair not in known:
                known[pair] = known_images(own, dataset, rows, 1, no_progress)
            table = drawn_predictions(dataset, rows, cell.seed)
            file = folder.predictions(cell.key, test.name)
            write_evaluation(file, replace(table, known=known[pair], allow_known=test.allow_known), rows)
    write_matrix(folder)
    return folder.out


def drawn_predictions(dataset: Dataset, rows: np.ndarray, seed: int) -> Predictions:
    """Predictions that are right more often than not."""
    logits = np.random.default_rng([seed, len(rows)]).normal(size=(len(rows), len(dataset.classes)))
    logits[np.arange(len(rows)), dataset.columns["label"][rows]] += 1.0
    return predictions_from_logits(dataset, rows, logits, run="drawn", step=1)


def row_of(out: Path, source: str, test: str) -> dict:
    rows = json.loads((out / "cross.json").read_text())["rows"]
    return next(row for row in rows if (row["source"], row["test"]) == (source, test))


def tables_of(out: Path, source: str, name: str) -> list:
    record = json.loads((out / "benchmark.json").read_text())
    cells = [cell["cell"] for cell in record["cells"] if cell["source"] == source]
    return [read_predictions(Folder(out).predictions(cell, name)) for cell in cells]


def test_every_pair_and_every_collection_left_out_is_there(crossed: Path) -> None:
    document = json.loads((crossed / "cross.json").read_text())
    names = ["alpha", "beta", "gamma"]
    pairs = {(row["source"], row["test"]): row for row in document["rows"]}
    assert set(pairs) == {(a, b) for a in names for b in names} | {(f"all but {name}", name) for name in names}
    assert all("refused" not in row for row in pairs.values())
    assert {row["kind"] for pair, row in pairs.items() if pair[0] == pair[1]} == {"internal"}
    for row in pairs.values():
        assert len(row["balanced_accuracy"]["seeds"]) == 2
        assert ("drop" in row) == (row["kind"] == "external")
    text = (crossed / "cross.md").read_text()
    assert text.count("\n| alpha |") == 4  # three tests, and the worst of them
    assert "- alpha and beta share pictures or patients (" in text
    assert "alpha and gamma share" not in text


def test_training_images_that_a_left_out_collection_has_are_counted(
    crossed: Path, collections: dict[str, Path]
) -> None:
    row = row_of(crossed, "all but alpha", "alpha")
    alpha, beta = (open_dataset(collections[name]).columns for name in ("alpha", "beta"))
    same = np.isin(beta["pixel_hash"].astype(str), alpha["pixel_hash"].astype(str))
    grouped = np.isin(beta["group"].astype(str), beta["group"][same].astype(str))
    assert sum(row["excluded"].values()) >= grouped.sum() >= same.sum() > 0
    assert row["left_out"] == {}
    text = (crossed / "cross.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| all but alpha | alpha | test_convnext |")]
    assert line.endswith(f"{row['excluded']['train']} training images |") or "training images, " in line
    document = json.loads((crossed / "cross.json").read_text())
    sentences = {tuple(text.partition(" share ")[0].split(" and ")): text for text in overlaps(document)}
    pairs = {("alpha", "beta"), ("beta", "alpha"), ("all but alpha", "alpha"), ("all but beta", "beta")}
    assert set(sentences) == pairs
    assert f"({sum(row['excluded'].values())} training and validation images are" in sentences["all but alpha", "alpha"]
    unfinished = [{**row, "model": "first", "refused": "no seed is finished"} for row in document["rows"]]
    for each in unfinished:
        each.pop("balanced_accuracy_full", None)
    models = ["first", *document["models"]]
    assert overlaps({**document, "models": models, "rows": unfinished + document["rows"]}) == list(sentences.values())


def test_a_test_elsewhere_counts_without_a_drop(crossed: Path) -> None:
    """A collection that was left out, and one whose drop is refused, are other collections, too."""
    document = json.loads((crossed / "cross.json").read_text())

    def sentence(*rows: dict) -> str:
        return _elsewhere({**document, "rows": list(rows)})

    inside, outside = row_of(crossed, "alpha", "alpha"), row_of(crossed, "alpha", "beta")
    assert sentence(inside).startswith("Not tested on another collection")
    assert sentence(inside, row_of(crossed, "all but gamma", "gamma")) == (
        "How accurate the models are on other collections than gamma is not known."
    )
    refused = {**outside, "drop": {"refused": "one class"}}
    assert sentence(inside, refused) == "How accurate the models are on other collections than beta is not known."
    worse = {**outside, "drop": {**outside["drop"], "value": 0.25}}
    assert "loses 25.0 percentage points of balanced accuracy on beta" in sentence(inside, worse)
    better = {**outside, "drop": {**outside["drop"], "value": -0.25}}
    assert "loses" not in sentence(inside, better)
    assert (
        sentence({**outside, "refused": "no seed is finished", "balanced_accuracy_full": {"value": None}})[:3] == "Not"
    )


def test_known_images_are_left_out_and_counted(crossed: Path, collections: dict[str, Path]) -> None:
    row = row_of(crossed, "alpha", "beta")
    tables = tables_of(crossed, "alpha", "beta")
    known = tables[0].known
    expected = {reason: int((known == reason).sum()) for reason in set(known) - {""}}
    assert expected.get("same pixels", 0) > 0
    assert row["left_out"] == expected
    assert row["images"] == len(open_dataset(collections["beta"]).rows("test")) - sum(expected.values())


def test_numbers_equal_scikit_learn_s(crossed: Path) -> None:
    row = row_of(crossed, "alpha", "beta")
    for number, table in enumerate(tables_of(crossed, "alpha", "beta")):
        kept = table.headline
        assert row["accuracy_full"]["seeds"][number] == pytest.approx(accuracy_score(kept.label, kept.predicted))
        balanced = balanced_accuracy_score(kept.label, kept.predicted)
        assert row["balanced_accuracy"]["seeds"][number] == pytest.approx(balanced)
    inside = row_of(crossed, "alpha", "alpha")["balanced_accuracy"]["seeds"]
    differences = np.subtract(inside, row["balanced_accuracy"]["seeds"])
    assert row["drop"]["seeds"] == pytest.approx(differences)
    assert row["drop"]["value"] == pytest.approx(differences.mean())
    assert row["drop"]["sd"] == pytest.approx(differences.std(ddof=1))
    assert row["drop"]["refused"] == "only 9 groups; an interval over groups needs 10"  # no interval of it


def test_two_and_four_classes_by_their_common_meaning(crossed: Path) -> None:
    for source, test in (("alpha", "gamma"), ("gamma", "alpha"), ("all but gamma", "gamma")):
        row = row_of(crossed, source, test)
        assert sorted(row["classes"]) == ["notumor", "tumor"]
    row, tables = row_of(crossed, "alpha", "gamma"), tables_of(crossed, "alpha", "test")
    outside = [t.headline for t in tables_of(crossed, "alpha", "gamma")]
    for number, table in enumerate(tables):  # the drop compares the same question inside
        is_tumour = table.label != table.classes.index("notumor")
        probability = 1 - table.prob[:, table.classes.index("notumor")]
        inside = balanced_accuracy_score(is_tumour, probability > 0.5)
        other = balanced_accuracy_score(outside[number].label, outside[number].predicted)
        assert row["drop"]["seeds"][number] == pytest.approx(inside - other)


def test_a_published_split_is_judged_with_and_without_the_images_that_training_knew(
    collections: dict[str, Path], tmp_path: Path
) -> None:
    images = collections["alpha"].parent / "images" / "a"
    for name in FOUR:
        for number, file in enumerate(sorted((images / name).iterdir())):
            for part in ["Training"] * (number < 12) + ["Testing"] * (number % 3 == 0):  # two in three of them are new
                path = tmp_path / "divided" / part / name / f"{part[:2]}{file.name}"
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, path)
    options = ["--split", "original", "--fractions", "0.8,0.2,0", "--workers", "1"]
    in_process("shard", "build", "--source", str(tmp_path / "divided"), "--out", str(tmp_path / "shards"), *options)
    out = drawn_benchmark([tmp_path / "shards", collections["gamma"]], tmp_path / "out")
    rows = [row for row in json.loads((out / "cross.json").read_text())["rows"] if row["source"] == "divided"]
    clean, published, _ = rows
    assert [row["kind"] for row in rows] == ["internal", "published", "external"]
    dataset = open_dataset(tmp_path / "shards")
    tests, group = dataset.rows("test"), dataset.columns["group"]
    assert (published["images"], published["left_out"]) == (len(tests), {})
    left_out = np.isin(group[tests].astype(str), group[dataset.rows("train")].astype(str)).sum()
    assert 0 < left_out < len(tests)
    assert sum(clean["left_out"].values()) == left_out
    assert clean["images"] == len(tests) - left_out
    assert "divided (its published test, with images that training knew)" in (out / "cross.md").read_text()
    assert in_process("benchmark", "page", str(out)).code == 0
    page = (out / "index.html").read_text()
    assert "its published test split, with images that training knew" in page
    assert "Trained and tested on divided, with the test images that training knew" in page


def test_a_test_collection_that_was_built_again_is_evaluated_again(
    collections: dict[str, Path], crossed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (config,) = read_variants("test_convnext", [], SETTINGS).values()
    shutil.copytree(crossed, out)
    images = collections["gamma"].parent / "images" / "c"
    two = {"notumor": ["notumor"], "tumor": ["glioma", "meningioma", "pituitary"]}
    again = build(tmp_path, "gamma", images, two, "--split", "test")
    folder, listed = Folder(out), f"{collections['alpha']},{collections['beta']},{again}"
    datasets = open_collections(listed, config)
    assert datasets["gamma"].version != open_dataset(collections["gamma"]).version
    sources, pairs = plan_pairs(datasets, config, folder, ["alpha"])
    tests = evaluations_of(sources, pairs, datasets)
    grid = plan({"test_convnext": config}, [0, 1], None, sources, out, 1, tests)
    folder.claim(grid, "cross", plan_text(datasets, pairs))
    for cell in grid.cells:
        assert not folder.is_finished(cell)
        (evaluation,) = [words for words in training_commands(cell, folder) if words[0] == "evaluate"]
        assert evaluation[-4:] == ["--shards", str(again), "--name", "gamma"]
    assert read_benchmark(folder).missing == [f"test_convnext, seed {seed}, tested on gamma" for seed in (0, 1)]
    rows = {row["test"]: row for row in write_matrix(folder)["rows"]}
    assert rows["gamma"]["refused"] == "no seed is finished"
    assert rows["beta"]["balanced_accuracy"] == row_of(crossed, "alpha", "beta")["balanced_accuracy"]
    for cell in grid.cells:
        dataset = with_run_classes(datasets["gamma"], FOUR)
        table = drawn_predictions(dataset, dataset.rows("test"), cell.seed)
        write_evaluation(folder.predictions(cell.key, "gamma"), table, dataset.rows("test"))
        assert folder.is_finished(cell)


def of_alpha(crossed: Path, out: Path) -> Folder:
    """A copy of a cross benchmark with the pairs that were trained on alpha only."""
    shutil.copytree(crossed, out)
    planned = json.loads((out / "cross_plan.json").read_text())
    planned["pairs"] = [pair for pair in planned["pairs"] if pair["source"] == "alpha"]
    (out / "cross_plan.json").write_text(json.dumps(planned))
    return Folder(out)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_plan_is_named_and_a_damaged_matrix_judged_again(crossed: Path, tmp_path: Path, kind: str) -> None:
    folder = Folder(shutil.copytree(crossed, tmp_path / "out"))
    before = (folder.out / "cross.json").read_bytes()
    damage(folder.out / "cross.json", kind)
    read_matrix(folder)
    assert (folder.out / "cross.json").read_bytes() == before
    damage(folder.out / "cross_plan.json", kind)
    with pytest.raises(UserError, match=r"cross_plan\.json is damaged \(.*\); give the command of the benchmark again"):
        write_matrix(folder)


def test_seeds_that_are_missing_are_named_and_drops_are_paired_by_seed(crossed: Path, tmp_path: Path) -> None:
    folder = of_alpha(crossed, tmp_path / "out")
    keys = {cell["seed"]: cell["cell"] for cell in folder.record()["cells"] if cell["source"] == "alpha"}
    folder.predictions(keys[1], "test").unlink()
    folder.predictions(keys[0], "beta").unlink()
    document = read_matrix(folder)  # cross.json is that of all cells
    assert document is not None
    inside, beta, gamma = document["rows"]
    assert [row["of_seeds"] for row in (inside, beta, gamma)] == [[0], [1], [0, 1]]
    assert beta["balanced_accuracy"]["seeds"] == row_of(crossed, "alpha", "beta")["balanced_accuracy"]["seeds"][1:]
    assert beta["drop"] == {"classes": beta["classes"], "refused": "no seed is finished in both"}
    assert gamma["drop"]["of_seeds"] == [0]
    assert gamma["drop"]["seeds"] == row_of(crossed, "alpha", "gamma")["drop"]["seeds"][:1]
    lines = {tuple(line.split(" | ")[:2]): line for line in markdown(document).splitlines()}
    assert "(seeds 1 of 2)" in lines["| alpha", "beta"]
    assert lines["| alpha", "gamma"].count("(seeds 1 of 2)") == 1, "of the drop"
    assert document["worst"][0]["of_seeds"] == [1]


def test_a_matrix_is_judged_again_when_the_benchmark_has_changed(crossed: Path, tmp_path: Path) -> None:
    folder = of_alpha(crossed, tmp_path / "out")
    first = read_matrix(folder)
    assert first is not None
    written = (folder.out / "cross.json").stat().st_mtime_ns
    assert read_matrix(folder) == first
    assert (folder.out / "cross.json").stat().st_mtime_ns == written, "nothing has changed"
    record = folder.record()
    for cell in record["cells"]:  # as `benchmark run` with another model leaves it
        cell.update(model="other", cell=f"other{cell['seed']}", tests=["test"])
    (folder.out / "benchmark.json").write_text(json.dumps({**record, "models": ["other"]}))
    document = read_matrix(folder)
    assert document is not None
    assert {row["model"] for row in document["rows"]} == {"other"}
    reasons = {row["test"]: row["refused"] for row in document["rows"]}
    assert reasons == {
        "alpha": "no seed is finished",
        **dict.fromkeys(("beta", "gamma"), "not part of the last command"),
    }
    assert json.loads((folder.out / "cross.json").read_text()) == document
    assert "test_convnext" not in (folder.out / "cross.md").read_text()


@pytest.mark.slow
def test_a_real_cross_benchmark_and_the_same_command_again(collections: dict[str, Path], tmp_path: Path) -> None:
    healthy = build_healthy(collections["alpha"].parent / "images" / "c", tmp_path)
    shards = [collections["alpha"], collections["gamma"], healthy]
    out = tmp_path / "out"
    result = in_process("benchmark", "cross", str(out), *arguments(shards, "0"))
    row = row_of(out, "alpha", "healthy")
    table = tables_of(out, "alpha", "healthy")[0].headline
    assert row["classes"] == ["notumor"]
    assert row["accuracy_full"]["value"] == pytest.approx((table.predicted == table.label).mean())
    assert row["balanced_accuracy_full"]["value"] == row["accuracy_full"]["value"]
    assert row["balanced_accuracy"] == row["accuracy"] == {"refused": "one class"}
    assert row["drop"] == {"refused": "one class"}
    assert row["worst_class"] is None
    worst = {line["source"]: line for line in json.loads((out / "cross.json").read_text())["worst"]}
    assert (worst["alpha"]["collections"], worst["alpha"]["without"]) == (1, {"healthy": "one class"})
    assert worst["alpha"]["mean"] == row_of(out, "alpha", "gamma")["balanced_accuracy"]["value"]
    text = (out / "cross.md").read_text()
    assert "| 1, without healthy (one class) |" in text
    assert row_of(out, "healthy", "alpha")["refused"] == "healthy has no training images: it is only tested on"
    assert "it is only tested on" in result.out
    assert sorted(row_of(out, "gamma", "alpha")["classes"]) == ["notumor", "tumor"]
    printed = in_process("benchmark", "probe", str(out), "--limit", "40").out
    probed = json.loads((out / "probe.json").read_text())["rows"]
    assert {(row["source"], row["class"]) for row in probed} >= {("alpha", "notumor"), ("gamma", "tumor")}
    assert all(0 <= row["balanced_accuracy"] <= 1 for row in probed if "refused" not in row)
    assert "| trained on | model | class | source named right | chance |" in printed
    in_process("benchmark", "page", str(out))
    html = (out / "index.html").read_text()
    assert "Is the collection in the features?" in html
    assert "<small>without healthy: one class</small>" in html
    before = (out / "cross.json").read_bytes()
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/metrics.jsonl")}
    in_process("benchmark", "cross", str(out), *arguments(shards, "0"))
    assert (out / "cross.json").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@pytest.mark.slow
def test_slurm_without_a_missing_cell_writes_the_tables(
    collections: dict[str, Path], crossed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(crossed, out)
    expected = (out / "cross.md").read_text()
    for name in ("cross.json", "cross.md", "cross_plan.json"):
        (out / name).unlink()
    words = [*arguments(list(collections.values()), "0,1"), "--slurm"]
    printed = in_process("benchmark", "cross", str(out), *words).out
    assert "all cells are finished" in printed
    assert (out / "cross.md").read_text() == expected
    assert expected in printed
    assert Folder(out).record()["processes"] is None
    assert in_process("benchmark", "cross", str(out), *words[:-1], "--seeds", "0").code == 0  # without SLURM
    assert "mean ± standard deviation over 1 seeds" in (out / "cross.md").read_text()


def build_healthy(images: Path, base: Path) -> Path:
    """Shards of four classes that only have images of one."""
    recipe = {
        "name": "healthy",
        "classes": list(FOUR),
        "parts": [{"dataset": "healthy", "folders": {"notumor": ["notumor"]}}],
    }
    (base / "healthy.yaml").write_text(json.dumps(recipe))
    options = ["--recipe", str(base / "healthy.yaml"), "--source", str(images), "--out", str(base / "healthy")]
    in_process("shard", "build", *options, "--split", "test", "--workers", "1")
    return base / "healthy"


def test_pairs_without_a_result_say_why(collections: dict[str, Path], tmp_path: Path) -> None:
    healthy = build_healthy(collections["alpha"].parent / "images" / "c", tmp_path)
    images = collections["alpha"].parent / "images" / "a"
    again = build(tmp_path, "again", images, {name: [name] for name in FOUR}, "--seed", "1", "--split", "test")
    other = build(tmp_path, "other", images, {"glioma": ["glioma"], "pituitary": ["pituitary"]})
    config = load(SETTINGS)
    listed = [collections["alpha"], healthy, again, other]
    datasets = open_collections(",".join(map(str, listed)), config)
    _, pairs = plan_pairs(datasets, config, Folder(tmp_path / "out"))
    refused = {(pair.source, pair.test): pair.refused or "" for pair in pairs}
    assert refused["healthy", "alpha"] == "healthy has no training images: it is only tested on"
    assert refused["alpha", "healthy"] == ""
    assert "have no common meaning" in refused["alpha", "other"]
    assert refused["alpha", "alpha"] == ""
    assert refused["all but alpha", "alpha"]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["alpha"], [], "--sources needs two collections or more"),
        (["alpha", "alpha"], [], "are the same shards; give each collection once"),
        (["alpha", "beta"], ["--folds", "3"], "--folds does not fit cross"),
        (["alpha", "beta"], ["--processes", "0"], "--processes 0: must be ≥ 1"),
    ],
)
def test_mistakes(
    collections: dict[str, Path], tmp_path: Path, names: list[str], options: list[str], message: str
) -> None:
    words = [*arguments([collections[name] for name in names], "0"), *options]
    assert message in in_process("benchmark", "cross", str(tmp_path / "out"), *words, expect=2).err


def test_class_and_collection_that_are_the_same_thing() -> None:
    dataset = np.array(["a", "a", "b", "c"], dtype=object)
    classes = ["glioma", "meningioma", "notumor"]
    (sentence,) = confounded(dataset, np.array([0, 1, 2, 2]), classes)
    assert "tumour or no tumour and collection are the same thing here" in sentence
    assert "from b, c" in sentence
    assert confounded(dataset, np.array([0, 2, 2, 2]), classes) == []
    assert confounded(dataset, np.array([0, 0, 1, 1]), classes) == ["glioma and a are the same thing here"]
    assert confounded(np.array(["a", "a"], dtype=object), np.array([0, 2]), classes) == []


def test_the_interval_of_a_drop_has_the_width_of_two_independent_tests() -> None:
    def judged(hits: int, count: int) -> Judged:
        right = np.arange(count) < hits
        full = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])[None]
        return Judged(("a", "b"), np.zeros(count, dtype=np.int64), np.arange(count), full, {}, (0,))

    result = drop(judged(360, 400), judged(140, 200), "accuracy")
    assert result["value"] == pytest.approx(0.2)
    low, high = result["interval"]
    width = 2 * 1.96 * np.sqrt(0.9 * 0.1 / 400 + 0.7 * 0.3 / 200)
    assert high - low == pytest.approx(width, rel=0.05)
    assert "refused" in drop(judged(360, 400), judged(5, 8), "accuracy")


def test_renormalised_probabilities_choose_among_the_shared_classes() -> None:
    full = np.array([[[0.3, 0.2, 0.5], [0.0, 0.0, 1.0]]])
    judged = Judged(("a", "b"), np.array([0, 1]), np.arange(2), full, {}, (0,))
    assert judged.renormalised[0].tolist() == [[0.6, 0.4], [0.5, 0.5]]
    assert judged.resampled("accuracy", all_classes=True, seed=0, resamples=10)[1] == [0.0]
    assert judged.resampled("accuracy", all_classes=False, seed=0, resamples=10)[1] == [0.5]


def test_among_one_class_nothing_can_be_wrong_so_nothing_is_reported() -> None:
    rng = np.random.default_rng(0)
    full = rng.dirichlet(np.ones(3), (2, 60))
    one = Judged(("notumor",), np.zeros(60, dtype=np.int64), np.arange(60), full, {}, (0, 1))
    row = entry(one)
    assert one.renormalised.min() == 1.0, "any network would have 100 %"
    assert row["balanced_accuracy"] == row["accuracy"] == {"refused": "one class"}
    rights = (full.argmax(axis=2) == 0).mean(axis=1)
    assert row["balanced_accuracy_full"]["seeds"] == row["accuracy_full"]["seeds"] == pytest.approx(rights)
    assert row["sensitivity"] == {"notumor": None}
    assert row["worst_class"] is None
    assert gain(one, replace(one, full=full[::-1])) == {"refused": "one class"}


@pytest.mark.slow
def test_the_page_shows_tiers_the_matrix_and_the_limits(crossed: Path, tmp_path: Path) -> None:
    audit = tmp_path / "audit"
    collection = {key: 0 for _, key, _ in COLLECTION_ROWS} | {"images": 10, "test_images": 4}
    collection |= {"test_images_with_any_train_copy": 3, "test_images_with_exact_train_copy": 3, "groups": 5}
    audit.mkdir()
    (audit / "audit.json").write_text(json.dumps({"collections": {"alpha": collection}, "between": {}}))
    result = in_process("benchmark", "page", str(crossed), "--audit", str(audit))
    assert result.out.startswith(str(crossed / "index.html"))
    html = (crossed / "index.html").read_text()
    assert not any(word in html for word in ("<script", "<link", "http://", "url(http"))
    row = row_of(crossed, "alpha", "beta")
    assert f"{100 * row['balanced_accuracy']['value']:.1f} ± {100 * row['balanced_accuracy']['sd']:.1f}" in html
    assert f"{100 * row['drop']['value']:+.1f} ± {100 * row['drop']['sd']:.1f}" in html
    assert f"{row['left_out']['same pixels']} same pixels" in html
    assert "Trained on all but gamma, tested on gamma" in html
    assert "Shared pictures.</b> Alpha and beta share pictures or patients" in html
    assert "3 of 4 test images (75.0\N{NO-BREAK SPACE}%)" in html  # the audit
    assert "image border only" in html  # the shortcut baselines, measured on the shards
    for limit in ("What this result does not show", "carry over is open", "is at a disadvantage", "in a clinic"):
        assert limit in html
    assert "other collections; images and patients that training knew are left out and counted" in html  # checklist
    kept = {file: file.stat().st_mtime_ns for file in (crossed / "shortcuts").iterdir()}
    assert len(kept) == 3
    in_process("benchmark", "page", str(crossed))
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert "No audit was given" in (crossed / "index.html").read_text()


def test_a_page_without_a_benchmark_or_an_audit_is_a_one_line_error(crossed: Path, tmp_path: Path) -> None:
    assert "benchmark.json does not exist" in in_process("benchmark", "page", str(tmp_path), expect=2).err
    error = in_process("benchmark", "page", str(crossed), "--audit", str(tmp_path), expect=2).err
    assert "audit.json cannot be read; write it with `brain-dist shard audit" in error


@pytest.mark.slow
def test_the_page_fits_a_phone(crossed: Path, tmp_path: Path) -> None:
    in_process("benchmark", "page", str(crossed))
    probe = """<script>addEventListener("load", () => parent.postMessage(JSON.stringify({
        width: innerWidth, needed: document.documentElement.scrollWidth,
        plots: [...document.querySelectorAll("figure svg")].map(s => s.getBoundingClientRect().height),
        fetched: performance.getEntriesByType("resource").length }), "*"))</script>"""
    html = (crossed / "index.html").read_text()
    (tmp_path / "probe.html").write_text(html.replace("</body>", probe + "</body>"))
    for width in (1200, 400):
        frame = f'<iframe src="probe.html" style="border:0;width:{width}px;height:900px"></iframe>'
        listen = "<script>addEventListener('message', e => document.title = e.data)</script>"
        (tmp_path / "frame.html").write_text(f"<!doctype html><title></title>{listen}{frame}")
        flags = ("--dump-dom", "--virtual-time-budget=5000")
        dom = browser(tmp_path / "frame.html", tmp_path / f"profile{width}", *flags, width=1400)
        seen = json.loads(dom.split("<title>")[1].split("</title>")[0])
        assert seen["needed"] <= seen["width"] == width
        assert seen["fetched"] == 0
        assert all(height > 50 for height in seen["plots"])
