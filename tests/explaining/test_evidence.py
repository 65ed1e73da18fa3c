"""The evidence test tells a network that sees the tumour from one that sees the border, and counts what it left out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import TINY, in_process, verb

from brain_dist import load_run
from brain_dist.errors import UserError
from brain_dist.explaining.evidence import evidence, evidence_of
from brain_dist.explaining.evidence_summary import summarise
from brain_dist.explaining.evidence_wording import HEADER, markdown
from brain_dist.inference.run import LoadedRun
from brain_dist.judging.predictions import Predictions, read_predictions
from brain_dist.store.lesions import read_lesions


@pytest.fixture(scope="module")
def run(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch with predictions of the test split."""
    runs = tmp_path_factory.mktemp("runs")
    batch = ["--train.global_batch", "24", "--train.micro_batch", "24", "--train.epochs", "1", "--optim.lr", "3e-3"]
    output = ["--data.shards", str(phantom_shards), "--run.dir", str(runs), "--run.name", "run"]
    verb("train", *TINY, *batch, *output, "--train.precision", "fp32", "--data.size", "64", "--data.head_crop", "true")
    verb("evaluate", str(runs / "run"))
    return runs / "run"


@pytest.fixture(scope="module")
def opened(run: Path) -> tuple[LoadedRun, Predictions]:
    return load_run(run), read_predictions(run / "predictions" / "test.parquet")


class Reads(torch.nn.Module):
    """Says the true class of each image if a part of the image is as it was, and the next class otherwise."""

    def __init__(self, run: LoadedRun, table: Predictions, parts: np.ndarray) -> None:
        super().__init__()
        self.images = run.images(table.row.tolist())
        self.parts = torch.from_numpy(parts)[:, None]
        self.labels, self.classes = table.label, len(table.classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(images), self.classes)
        for number, image in enumerate(images):
            distance = ((self.images - image).abs() > 1e-4).float().mean(dim=(1, 2, 3))
            own = int(distance.argmin())  # which image it is, or is a variant of
            same = not ((self.images[own] - image).abs() * self.parts[own] > 1e-4).any()
            logits[number, (self.labels[own] + (not same)) % self.classes] = 4
        return logits


def parts_of(run: LoadedRun, table: Predictions, what: str) -> np.ndarray:
    """The part of each input [N, size, size] that a network reads: its outermost pixels, or its lesion."""
    size = run.config.data.size
    border = np.ones((size, size), bool)
    border[1:-1, 1:-1] = False
    parts = []
    for row, lesion in zip(table.row, read_lesions(run.dataset, table.row), strict=True):
        columns = run.dataset.columns
        crop = [columns[name][row] for name in ("head_x", "head_y", "head_w", "head_h")]
        parts.append(border if what == "border" or lesion is None else lesion.on_input(size, crop))
    return np.stack(parts)


def without_border(run: LoadedRun, table: Predictions) -> Predictions:
    """The images with a lesion that is so far from the border that erasing it does not change that."""
    lesions = parts_of(run, table, "lesion")
    margin = max(1, round(0.03 * run.config.data.size)) + 2
    far = [not (part & ~np.pad(np.ones([s - 2 * margin for s in part.shape], bool), margin)).any() for part in lesions]
    tumour = table.label != table.classes.index("notumor")
    return table.take(np.flatnonzero(np.array(far) & tumour))


@pytest.mark.slow
def test_a_network_that_reads_the_border_survives_and_one_that_reads_the_lesion_does_not(opened) -> None:
    run, table = opened
    assert run.config.data.head_crop
    table = without_border(run, table)
    assert len(table) > 10
    for what, kept in (("border", 1.0), ("lesion", 0.0)):
        network = Reads(run, table, parts_of(run, table, what))
        result = evidence_of(replace(run, model=network), table, micro_batch=8)
        total = result.summary["all"]
        assert total["images"] == total["right"] == len(table)
        assert total["survive"]["value"] == kept
        assert total["survive_control"]["value"] == 1
        assert total["fall_control"]["value"] == 0
        sure = torch.softmax(torch.tensor([4.0, 0, 0, 0]), 0)
        assert total["fall"]["value"] == pytest.approx((1 - kept) * float(sure[0] - sure[1]), abs=1e-6)
        assert 0 < total["controls"] < len(table)
        assert total["controls"] + sum(total["without_control"].values()) == len(table)
        assert (result.change[result.control == "used"] > 0).all()
        assert np.isnan(result.prob[result.control != "used", 2]).all()


@pytest.mark.slow
def test_it_writes_tables_and_counts_what_is_left_out(run: Path, opened, tmp_path: Path, capsys) -> None:
    table = opened[1]
    result = evidence(run, tmp_path / "out", name="test", device="cpu")
    summary = json.loads((tmp_path / "out" / "test-evidence.json").read_text())
    assert summary == json.loads(json.dumps(result.summary))
    healthy = table.label == table.classes.index("notumor")
    assert summary["unknown"] == healthy.sum()
    assert summary["all"]["images"] == summary["masks"] == (~healthy).sum()
    assert summary["outside"] == 0
    rows = pq.read_table(tmp_path / "out" / "test-evidence.parquet")
    assert rows["key"].to_pylist() == table.key[~healthy].tolist()
    true = table.prob[np.arange(len(table)), table.label][~healthy]
    np.testing.assert_allclose(rows["prob_original"].to_numpy(), true, atol=1e-5)
    used = np.array(rows["control"].to_pylist()) == "used"
    assert rows["prob_control"].null_count == rows["change_control"].null_count == (~used).sum()
    assert rows["prob_erased"].null_count == 0
    text = (tmp_path / "out" / "test-evidence.md").read_text()
    assert text == markdown(summary)
    assert f"{used.sum()} of {len(used)} images have a control" in text
    printed = capsys.readouterr().out
    assert "images without a known tumour" in printed
    assert all(re.search(rf"^ *{name} +│", printed, re.MULTILINE) for name in HEADER[1:])  # nothing cut at 80 columns
    words = ["--methods", "layercam", "--limit", "2", "--device", "cpu", "--out", str(tmp_path / "verb"), "--evidence"]
    assert "have a control" in in_process("explain", str(run), *words).out
    assert json.loads((tmp_path / "verb" / "test-evidence.json").read_text())["all"] == summary["all"]
    again = evidence(run, tmp_path / "again", name="test", device="cpu", micro_batch=5)
    np.testing.assert_allclose(again.prob, result.prob, atol=1e-5)


def test_numbers_are_means_over_images_with_intervals_over_patients() -> None:
    """48 images of 24 patients; half of them are right, a third of these without the tumour, too."""
    count = 48
    label = np.tile([0, 2], 24)
    prob = np.full((count, 3, 3), 0.1, np.float32)
    for number, wanted in enumerate(label):
        original = wanted if number % 4 < 2 else (wanted + 1) % 3
        erased = original if number % 12 < 2 else 1
        for variant, answer in enumerate((original, erased, original)):
            prob[number, variant, answer] = 0.8
    control = np.array(["used", "overlap"] * 24, dtype=object)
    prob[control != "used", 2] = np.nan
    text = np.array([f"p{number // 2:02d}" for number in range(count)], dtype=object)
    table = Predictions(
        np.arange(count), text, text, text, text, text, label, prob[:, 0], np.log(prob[:, 0]),
        ("glioma", "notumor", "pituitary"), "run", 1, "", "",
    )  # fmt: skip
    summary = summarise(table, prob, control, np.full((count, 2), 5.0), classes=table.classes)
    total = summary["all"]
    counts = [total[name] for name in ("images", "groups", "controls", "right", "right_controls")]
    assert counts == [48, 24, 24, 24, 12]
    assert total["survive"]["value"] == pytest.approx(1 / 3)
    low, high = total["survive"]["interval"]
    assert 0 <= low < 1 / 3 < high < 0.9
    survive = total["survive_control"]
    assert (survive["value"], survive["interval_of"]) == (1.0, "Wilson")
    assert survive["interval"] == pytest.approx([0.757506, 1.0], abs=1e-6)  # 12 of 12 groups
    assert total["called_notumor"] == pytest.approx(2 / 3)
    expected = [prob[number, 0, wanted] - prob[number, 1, wanted] for number, wanted in enumerate(label)]
    assert total["fall"]["value"] == pytest.approx(np.mean(expected))
    assert total["fall_difference"]["value"] == pytest.approx(np.mean(expected[::2]))
    assert total["without_control"] == {"overlap": 24, "outside": 0}
    assert list(summary["classes"]) == ["glioma", "pituitary"]
    assert summary["classes"]["pituitary"]["controls"] == 0
    assert summary["classes"]["pituitary"]["fall_control"]["refused"] == "no images"


@pytest.mark.slow
def test_a_network_of_more_classes_on_shards_of_two_sums_its_tumours(
    run: Path, phantom_shards: Path, tmp_path: Path
) -> None:
    folders = {"notumor": ["notumor"], "tumor": ["glioma", "meningioma", "pituitary"]}
    part = {"dataset": "phantom", "folders": folders, "masks": {"folder": "masks"}}
    (tmp_path / "two.yaml").write_text(json.dumps({"name": "two", "classes": list(folders), "parts": [part]}))
    images, out = str(phantom_shards.parent / "images"), str(tmp_path / "two")
    verb("shard", "build", "--recipe", str(tmp_path / "two.yaml"), "--source", images, "--out", out, "--split", "test")
    two, four = load_run(run, shards=out), load_run(run)
    result = evidence_of(two, two.predict("test").take(np.arange(40)))
    assert result.summary["classes"].keys() == {"tumor"}
    row_of = {source: row for row, source in enumerate(four.dataset.columns["source"])}
    rows = [row_of[two.dataset.columns["source"][row]] for row in result.table.row]
    with torch.no_grad():
        prob = torch.softmax(four.model(four.images(rows)), 1).numpy()
    np.testing.assert_allclose(result.prob[:, 0, 1], 1 - prob[:, four.dataset.classes.index("notumor")], atol=1e-5)
    assert result.summary["all"]["called_notumor"] is not None


def test_shards_without_lesions_and_adopted_predictions_are_refused(run: Path, opened, tmp_path: Path) -> None:
    loaded, table = opened
    healthy = table.take(np.flatnonzero(table.label == table.classes.index("notumor")))
    with pytest.raises(
        UserError, match=r"has no boxes or masks of lesions for these \d+ images; build it with a recipe that"
    ):
        evidence_of(loaded, healthy)
    with pytest.raises(UserError, match="absent"):
        evidence(run, tmp_path, name="absent")
    with pytest.raises(UserError, match="--batch 0: must be"):
        evidence(run, tmp_path, micro_batch=0)
