"""``brain-dist explain`` on small trained runs: its tables, its pages, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from browser import browser
from helpers import ROOT, TINY, in_process, verb

from brain_dist.explaining import references
from brain_dist.explaining.images import tumour_masks
from brain_dist.explaining.measures import LOCATION
from brain_dist.explaining.methods import TITLES
from brain_dist.explaining.tables import difference_text
from brain_dist.inference.run import load_run
from brain_dist.judging.predictions import read_predictions, table_bytes

METHODS = "layercam,gradientshap"
ALL = "layercam,gradcam,gradientshap"
LIMIT = 10  # images, of as many patients: fewer have no intervals
SAMPLES = 50


@pytest.fixture(scope="module")
def base(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards whose tumours are known, and a run on them, evaluated and explained."""
    base = tmp_path_factory.mktemp("explained")
    source = ["--recipe", str(ROOT / "shards/datasets/phantom.yaml"), "--source", str(phantom_shards.parent / "images")]
    in_process("shard", "build", *source, "--out", str(base / "shards"), "--fractions", "0.6,0.1,0.3")
    batch = ["--train.global_batch", "24", "--train.micro_batch", "24", "--train.epochs", "2", "--optim.lr", "3e-3"]
    paths = ["--data.shards", str(base / "shards"), "--run.dir", str(base)]
    verb("train", *TINY, *batch, *paths, "--run.name", "run0", "--train.precision", "fp32")
    in_process("evaluate", str(base / "run0"), "--device", "cpu")
    in_process("explain", str(base / "run0"), "--methods", METHODS, "--limit", str(LIMIT), "--samples", str(SAMPLES))
    return base


@pytest.fixture(scope="module")
def pair(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and a copy of it, explained together by more methods."""
    pair = tmp_path_factory.mktemp("pair")
    for name in ("run0", "run1"):
        shutil.copytree(base / "run0", pair / name)
    settings = ["--methods", ALL, "--limit", str(LIMIT), "--samples", str(SAMPLES)]
    in_process("explain", str(pair / "run0"), str(pair / "run1"), *settings)
    return pair


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    """A copy of a run that a test may change."""
    return Path(shutil.copytree(base / "run0", tmp_path / "run0"))


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "explanations" / "test.json").read_text())


def report_of(run: Path) -> str:
    return (run / "report" / "index.html").read_text()


@pytest.mark.slow
def test_the_table_has_every_image_map_and_measure(base: Path) -> None:
    table = pq.read_table(base / "run0" / "explanations" / "test.parquet").to_pandas()
    maps = {(name, kind) for name in METHODS.split(",") for kind in ("trained", "untrained")}
    maps |= {(name, "reference") for name in references.TITLES}
    assert set(zip(table["map"], table["network"], strict=True)) == maps
    assert set(table["measure"]) == {*LOCATION, "insertion", "deletion"}
    assert len(table) == LIMIT * len(maps) * 6
    assert table["key"].nunique() == table["patient"].nunique() == LIMIT, "one of each patient before a second one"
    assert table["value"].between(0, 1).all()


@pytest.mark.slow
def test_references_are_measured_against_the_outlines(base: Path) -> None:
    table = pq.read_table(base / "run0" / "explanations" / "test.parquet").to_pandas()
    loaded = load_run(base / "run0")
    rows = np.sort(table["row"].unique())
    masks = tumour_masks(loaded, loaded.dataset, rows)
    centre = references.centre(32)
    for row, mask in zip(rows, masks, strict=True):
        assert mask is not None
        values = table[(table["row"] == row) & (table["network"] == "reference")].set_index(["map", "measure"])["value"]
        assert values["uniform", "pointing game"] == pytest.approx(mask.mean())
        assert values["uniform", "energy inside"] == pytest.approx(mask.mean())
        for name, of in LOCATION.items():
            assert values["centre", name] == pytest.approx(of(centre, mask))


@pytest.mark.slow
def test_the_summary_s_means_are_those_of_the_table(base: Path) -> None:
    summary = summary_of(base / "run0")
    table = pq.read_table(base / "run0" / "explanations" / "test.parquet").to_pandas()
    means = table.groupby(["measure", "map", "network"])["value"].mean()
    assert (summary["images"], summary["groups"], summary["located"]) == (LIMIT, LIMIT, True)
    for measure, result in summary["measures"].items():
        assert result["better"] == (-1 if measure == "deletion" else 1)
        for method, value in result["methods"].items():
            own = means[measure, method, "trained"]
            assert value["value"] == pytest.approx(own)
            assert value["minus"]["centre"]["value"] == pytest.approx(own - means[measure, "centre", "reference"])
            assert value["minus"]["untrained"]["value"] == pytest.approx(own - means[measure, method, "untrained"])
            if value["interval"] is not None:
                low, high = value["interval"]
                assert low <= value["value"] <= high
    assert list(summary["verdicts"]) == METHODS.split(",")
    assert summary["completeness"]["median_error"] < 0.1
    assert summary["methods"]["gradientshap"] == f"every pixel, {SAMPLES} samples"
    assert [len(result["steps"]) for result in summary["cascade"].values()] == [5, 5]


@pytest.mark.slow
def test_runs_that_are_explained_together_are_compared(base: Path, pair: Path) -> None:
    summary = summary_of(pair / "run0")
    assert list(summary["agreement"]) == list(summary["verdicts"]) == ALL.split(",")
    assert summary["agreement"]["layercam"]["runs"].keys() == {str(pair / "run1")}
    assert summary["agreement"]["gradientshap"]["value"] == pytest.approx(1), "the copy has the same maps"
    alone = summary_of(base / "run0")
    assert alone["agreement"] == {}
    for measure, result in alone["measures"].items():
        for method, value in result["methods"].items():
            assert value["value"] == pytest.approx(summary["measures"][measure]["methods"][method]["value"])


@pytest.mark.slow
def test_the_same_command_gives_the_same_bytes(base: Path, tmp_path: Path) -> None:
    for out in ("first", "second"):
        options = ["--methods", "layercam,gradientshap", "--limit", "3", "--out", str(tmp_path / out)]
        result = in_process("explain", str(base / "run0"), *options)
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == ["explanations.html", "test.json", "test.md", "test.parquet"]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert "may not be better than an untrained network: only 3 groups" in result.out
    assert "GradientSHAP's completeness error is" in result.out


@pytest.mark.slow
def test_what_a_map_does_not_depend_on_is_said_where_it_is_shown(pair: Path, tmp_path: Path) -> None:
    """Each verdict, and each map that random weights do not change, is on the page, in the report and in the table."""
    page = (pair / "run0" / "report" / "explanations.html").read_text()
    in_process("report", str(pair / "run0"))
    report = (pair / "run0" / "report" / "index.html").read_text()
    markdown = (pair / "run0" / "explanations" / "test.md").read_text()
    summary = summary_of(pair / "run0")
    for method, verdict in summary["verdicts"].items():
        for text in (page, report, markdown):
            assert verdict["words"] in text.replace("&#39;", "'")
        note = "does not depend on the weights"
        assert (f"{TITLES[method]} {note}" in markdown) == (not summary["cascade"][method]["depends"])
    assert "://" not in page  # self-contained
    assert "Synthetic images." in page
    dom = browser(pair / "run0" / "report" / "explanations.html", tmp_path, "--dump-dom")
    assert dom.count("<img") == page.count("<img") > 12


@pytest.mark.slow
def test_the_report_says_whether_its_own_maps_were_measured(base: Path, run: Path) -> None:
    in_process("report", str(run))
    assert 'id="explained"' in report_of(run)
    assert "was not measured" not in report_of(run)
    summary = summary_of(run)
    summary["verdicts"]["gradientshap"] = {"better": False, "words": "GradientSHAP is no better than that: x"}
    (run / "explanations" / "test.json").write_text(json.dumps(summary))
    in_process("report", str(run))
    assert "Do not rely on these maps.</b> GradientSHAP is no better than that: x" in report_of(run)
    for change in ({"step": 999}, {"dataset_version": "0"}):  # of another checkpoint, of other images
        (run / "explanations" / "test.json").write_text(json.dumps(summary | change))
        in_process("report", str(run))
        assert "was not measured" in report_of(run)
        assert 'id="explained"' not in report_of(run)


@pytest.mark.slow
def test_shards_without_outlines_are_explained_without_a_verdict_about_tumours(
    base: Path, phantom_shards: Path, run: Path
) -> None:
    images = phantom_shards.parent / "images"
    (run / "plain.yaml").write_text(json.dumps({"name": "plain", "parts": [{"ignore": ["masks"]}]}))
    recipe = ["--recipe", str(run / "plain.yaml"), "--source", str(images), "--out", str(run / "plain")]
    in_process("shard", "build", *recipe)
    in_process(
        "evaluate", str(run), "--shards", str(run / "plain"), "--name", "plain", "--allow-known", "--device", "cpu"
    )
    options = ["--name", "plain", "--methods", "gradcam", "--limit", "5"]
    result = in_process("explain", str(run), *options, "--skip-perturbation", expect=2)
    assert "--skip-perturbation leaves no measure" in result.err
    in_process("explain", str(run), *options)
    summary = json.loads((run / "explanations" / "plain.json").read_text())
    assert (summary["located"], summary["headline"]) == (False, "insertion")
    assert list(summary["measures"]) == ["insertion", "deletion"]
    page = (run / "report" / "explanations.html").read_text()
    assert "No outlines." in page
    assert "mean tumour" not in page


@pytest.mark.slow
def test_insertion_and_deletion_can_be_left_out(base: Path, run: Path) -> None:
    in_process("explain", str(run), "--methods", "layercam", "--limit", "3", "--skip-perturbation")
    measures = summary_of(run)["measures"]
    assert list(measures) == list(LOCATION)
    table = pq.read_table(run / "explanations" / "test.parquet").to_pandas()
    assert set(table["measure"]) == set(LOCATION)
    whole = pq.read_table(base / "run0" / "explanations" / "test.parquet").to_pandas()
    by = ["row", "map", "network", "measure"]
    both = table.merge(whole, on=by, suffixes=("", "_whole"))
    assert len(both) == len(table)
    assert (both["value"] == both["value_whole"]).all()
    assert "insertion" not in (run / "report" / "explanations.html").read_text()


@pytest.mark.slow
def test_refusals(base: Path, run: Path) -> None:
    def error(*arguments: str) -> str:
        result = in_process("explain", *arguments, expect=2)
        assert len(result.err.splitlines()) == 1
        return result.err

    assert "'lime' is unknown; choose from gradcam" in error(str(run), "--methods", "gradcam,lime")
    assert "'gradcam' is named twice" in error(str(run), "--methods", "gradcam,gradcam")
    assert "--limit 0: must be ≥ 1" in error(str(run), "--limit", "0")
    assert "--batch 0: must be ≥ 1" in error(str(run), "--batch", "0")
    assert "--samples 0: must be ≥ 1" in error(str(run), "--samples", "0")
    assert "--seed -1: must be ≥ 0" in error(str(run), "--seed", "-1")
    assert "absent.parquet does not exist" in error(str(run), "--name", "absent")
    assert "a run is named twice" in error(str(run), str(run))
    assert "two runs have the same name" in error(str(run), str(base / "run0"), "--out", str(run / "out"))
    path = run / "predictions" / "test.parquet"
    table = read_predictions(path)
    path.write_bytes(table_bytes(replace(table, dataset_version="0"), table.row))
    assert "was rebuilt since" in error(str(run))
    path.write_bytes(table_bytes(replace(table, adopted="x.csv"), table.row))
    assert "were adopted from a file" in error(str(run))
    path.write_bytes(table_bytes(table.take(np.arange(3)), table.row[:3]))
    assert "has predictions of other images than" in error(str(base / "run0"), str(run))
    (run / "explanations" / "test.json").write_text('{"schema": 7}')
    path.write_bytes(table_bytes(table, table.row))
    result = in_process("report", str(run), expect=2)
    assert "write it again with `brain-dist explain" in result.err


def test_differences_that_are_not_certain_are_in_brackets() -> None:
    assert difference_text({"value": 0.4, "interval": [0.1, 0.7]}) == "+0.40"
    assert difference_text({"value": -0.4, "interval": [-0.7, -0.1]}) == "-0.40"
    assert difference_text({"value": 0.4, "interval": [-0.1, 0.7]}) == "(+0.40)"
    assert difference_text({"value": 0.4, "interval": None}) == "(+0.40)"
