"""The report of a real run folder in a real browser: numbers, images, and messages about missing parts."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from browser import browser
from damage import DAMAGES, damage
from helpers import in_process
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file
from sklearn import metrics as sk

from brain_dist import config, evaluate, report, shortcut
from brain_dist.calibration.record import calibration_json, fit_calibration
from brain_dist.checkpoints.layout import MARKER, checkpoint_folder, encode_marker
from brain_dist.errors import UserError
from brain_dist.inference.run import load_run
from brain_dist.judging.examples import choose_examples, confident_errors, typical_hits
from brain_dist.judging.metrics import evaluate_predictions
from brain_dist.judging.predictions import Predictions, read_predictions, table_bytes
from brain_dist.judging.shortcuts import restrict
from brain_dist.networks.create import create_network
from brain_dist.pages.text import number, percent
from brain_dist.ranks.threads import choose_threads
from brain_dist.ranks.world import discover
from brain_dist.reporting.build import make_slices, worst_mistakes
from brain_dist.reporting.card import render_card
from brain_dist.reporting.card_limits import limitations
from brain_dist.reporting.page import calibration, render, separation
from brain_dist.reporting.run_files import read_run_files
from brain_dist.store.dataset import open_dataset
from brain_dist.tracking.run_folder import Choices, write_run_files
from brain_dist.tracking.tracker import Tracker

STEP = 7


@pytest.fixture(scope="module")
def finished_run(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint, a log, predictions, shortcut baselines and a report.

    The network is randomly initialised. Only its last layer is set: it predicts the class with the nearest mean of
    features among the training images.
    """
    base = tmp_path_factory.mktemp("runs")
    arguments = f"--run.name trial --run.dir {base} --run.device cpu --data.shards {phantom_shards}".split()
    tiny = ["--model.name", "test_convnext", "--data.size", "64", "--data.threads", "1", "--track.wandb", "off"]
    settings = config.load([*arguments, *tiny])
    dataset, run = open_dataset(phantom_shards), settings.run.path
    network = create_network(settings.model, len(dataset.classes), seed=3)
    size = sum(parameter.numel() for parameter in network.parameters())
    command = ["python", "-m", "brain_dist.train", *arguments]
    choices = Choices(choose_threads(discover({}), 1), "")
    write_run_files(settings, dataset, discover({}), torch.device("cpu"), size, command, choices)
    folder = checkpoint_folder(run / "checkpoints", STEP)
    folder.mkdir(parents=True)

    def save(state: dict[str, torch.Tensor]) -> None:
        file = folder / "model.safetensors"
        save_file({name: value.contiguous() for name, value in state.items()}, file)
        listing = {file.name: {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}}
        (folder / MARKER).write_bytes(encode_marker({"files": listing}))

    save(network.state_dict())
    loaded, rows = load_run(run), dataset.rows("train")
    with torch.no_grad():
        features = loaded.model.forward_head(loaded.model.forward_features(loaded.images(rows)), pre_logits=True)
        label, scale = torch.from_numpy(dataset.columns["label"][rows]), features.std(0)
        mean = torch.stack([(features / scale)[label == c].mean(0) for c in range(len(dataset.classes))])
        # -|x/scale - mean|² without the terms that are equal for all classes is linear in x
        state = loaded.model.state_dict()
        state["head.fc.weight"], state["head.fc.bias"] = 2 * mean / scale, -mean.square().sum(1)
    save(state)
    with Tracker(settings, run, first_step=0, total_steps=STEP, enabled=True) as tracker:
        for step in range(STEP):
            values = {"epoch": step / 3, "loss": 1.4 - 0.1 * step, "lr": 1e-4 * step, "grad_norm": 1.0}
            tracker.log_step(step, {**values, "images_per_s": 100.0})
        scores = {"loss": 1.2, "accuracy": 0.4, "f1_macro": 0.35, "auc_macro": None}
        tracker.log_evaluation(STEP, "val", {"epoch": 2.0, **scores})
    for split in ("test", "train"):
        assert evaluate.main([str(run), "--split", split, "--device", "cpu"]) == 0
    assert shortcut.main([str(phantom_shards), "--json", str(run / "predictions" / "shortcut.json")]) == 0
    assert report.main([str(run)]) == 0
    return run


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the run folder that a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "trial"))


# What a report reads → the damages that it bears: an incomplete last row, as of a killed process; no key it needs
READ_BY_A_REPORT: dict[str, tuple[str, ...]] = {
    "config.yaml": (), "environment.json": ("another object",), "metrics.jsonl": ("cut", "empty", "binary"),
    "predictions/test.parquet": (), "predictions/shortcut.json": (),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_named_with_the_fix(run: Path, kind: str) -> None:
    for name, borne in READ_BY_A_REPORT.items():
        file = run / name
        intact = file.read_bytes()
        damage(file, kind)
        if kind in borne:
            read_run_files(run, "test")
        else:
            with pytest.raises(UserError) as caught:
                read_run_files(run, "test")
            message = str(caught.value)
            assert message.startswith(str(file)), message
            assert re.search(r"; (write it again|copy it|delete that line)", message), message
        file.write_bytes(intact)
    damage(run / "environment.json", kind)
    error = in_process("evaluate", str(run), "--device", "cpu", expect=2).err
    assert error.startswith(f"brain-dist: error: {run / 'environment.json'} is damaged (")
    assert error.endswith("); give the command of the training again, which writes it\n")


class Page(HTMLParser):
    """Text by element id, and every URL that the page loads or links to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.by_id: dict[str, str] = {}
        self.urls: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self._open: list[tuple[str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.add(tag)
        self.urls += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data", "srcset") and v]
        if tag == "img":
            self.images.append(attributes)
        if tag not in ("img", "meta", "br", "link"):
            self._open.append((tag, attributes.get("id")))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for _, name in self._open:
            if name:
                self.by_id[name] = self.by_id.get(name, "") + data


def page_of(run: Path, name: str = "test") -> Page:
    files = read_run_files(run, name)
    return Page(render(files, worst_mistakes(files.predictions), typical_hits(files.predictions), {}, None))


def test_browser_shows_the_metrics_of_the_predictions(finished_run: Path, tmp_path: Path) -> None:
    shown = Page(browser(finished_run / "report" / "index.html", tmp_path, "--dump-dom")).by_id
    table = pq.read_table(finished_run / "predictions" / "test.parquet").to_pandas()
    prob = table[[c for c in table.columns if c.startswith("prob_")]].to_numpy()
    label, predicted = table["label"].to_numpy(), prob.argmax(1)
    auc = sk.roc_auc_score(label, prob / prob.sum(1, keepdims=True), multi_class="ovr")
    expected = {
        "accuracy": percent((label == predicted).mean()),
        "f1_macro": percent(sk.f1_score(label, predicted, average="macro")),
        "auc_macro": number(auc),
        "kappa": number(sk.cohen_kappa_score(label, predicted)),
        "ece": number(json.loads((finished_run / "predictions" / "test.json").read_text())["ece"]),
        "images": str(len(table)),
        "patients": str(table["patient"].nunique()),
    }
    assert {name: shown[name] for name in expected} == expected
    assert "Synthetic images" in shown["phantom"]
    assert "say nothing about real patients" in shown["phantom"]
    assert "No leakage found" in shown["separation"]
    assert shown["command"].startswith("python -m brain_dist.train --run.name trial")


def test_browser_shows_every_image_and_loads_no_other_file(finished_run: Path, tmp_path: Path) -> None:
    html = (finished_run / "report" / "index.html").read_text()
    probe = """<script>addEventListener("load", () => parent.postMessage(JSON.stringify({
        images: [...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight]),
        plots: [...document.querySelectorAll("figure svg")].map(s => s.getBoundingClientRect().height),
        fetched: performance.getEntriesByType("resource").map(r => r.name).filter(n => !n.startsWith("data:")),
        cut: [...document.querySelectorAll(".scroll")].filter(s => s.scrollWidth > s.clientWidth)
            .map(s => [s.innerText.slice(0, 80), s.scrollWidth, s.clientWidth]),
        width: innerWidth, needed: document.documentElement.scrollWidth }), "*"))</script>"""
    (tmp_path / "probe.html").write_text(html.replace("</body>", probe + "</body>"))
    predictions = read_predictions(finished_run / "predictions" / "test.parquet")
    cards = len(worst_mistakes(predictions)) + len(typical_hits(predictions))
    for width in (1200, 400):
        # In a frame, because a browser window cannot be as narrow as a phone
        frame = f'<iframe src="probe.html" style="border:0;width:{width}px;height:900px"></iframe>'
        listen = "<script>addEventListener('message', e => document.title = e.data)</script>"
        (tmp_path / "frame.html").write_text(f"<!doctype html><title></title>{listen}{frame}")
        profile = tmp_path / f"profile{width}"
        dom = browser(tmp_path / "frame.html", profile, "--dump-dom", "--virtual-time-budget=5000", width=1400)
        seen = json.loads(dom.split("<title>")[1].split("</title>")[0])
        assert seen["images"] == [[True, 64, 64]] * (2 * cards)
        assert len(seen["plots"]) == 6
        assert min(seen["plots"]) > 100
        assert seen["fetched"] == []
        assert seen["needed"] <= seen["width"] == width
        assert width < 1200 or seen["cut"] == []  # on a screen, no table hides a column


def test_screenshot_is_not_blank(finished_run: Path, tmp_path: Path) -> None:
    for width in (1200, 400):
        shot = tmp_path / f"{width}.png"
        browser(
            finished_run / "report" / "index.html", tmp_path / f"profile{width}", f"--screenshot={shot}", width=width
        )
        pixels = np.asarray(Image.open(shot).convert("RGB"))
        assert pixels.shape[1] == width
        dark = (pixels.min(axis=2) < 100).mean(axis=1)  # share of dark pixels per row of the screen
        assert 0.2 < (dark > 0.005).mean() < 0.95
        blue = (pixels[..., 2].astype(int) - pixels[..., 0] > 120).sum()
        assert blue > 500  # bars and plots


def test_page_is_self_contained(finished_run: Path) -> None:
    html = (finished_run / "report" / "index.html").read_text()
    page = Page(html)
    assert all(url.startswith(("data:image/jpeg;base64,", "#")) for url in page.urls)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base"}
    assert "@import" not in html
    assert "url(http" not in html
    assert len(page.images) >= 8
    for attributes in page.images:
        image = Image.open(io.BytesIO(base64.b64decode((attributes["src"] or "").split(",")[1])))
        assert image.size == (64, 64)
        assert attributes["alt"]


def test_images_are_the_inputs_of_the_network(finished_run: Path) -> None:
    predictions = read_predictions(finished_run / "predictions" / "test.parquet")
    loaded = load_run(finished_run)
    positions = worst_mistakes(predictions)[:3]
    slices = make_slices(loaded, predictions, positions)
    assert list(slices) == predictions.row[positions].tolist()
    for position, shown in zip(positions, slices.values(), strict=True):
        pixels = torch.from_numpy(shown.image)[None, None].expand(1, 3, -1, -1) / 255
        data = loaded.config.data
        inputs = (pixels - torch.tensor(data.mean).view(3, 1, 1)) / torch.tensor(data.std).view(3, 1, 1)
        with torch.no_grad():
            np.testing.assert_allclose(loaded.model(inputs)[0], predictions.logit[position], rtol=1e-3, atol=1e-2)
        assert (shown.image.dtype, shown.image.shape) == (np.uint8, (64, 64))
        assert shown.heat is not None
        assert shown.heat.shape == (64, 64)
    assert make_slices(loaded, predictions, np.array([], dtype=np.int64)) == {}


def test_page_without_shards(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "predictions" / "test.parquet"
    predictions = read_predictions(path)
    path.write_bytes(table_bytes(replace(predictions, shards=str(run / "gone")), predictions.row))
    assert report.main([str(run), "--out", str(run / "page.html")]) == 0
    page = Page((run / "page.html").read_text())
    assert page.images == []
    assert "no longer exists" in page.by_id["images-missing"]
    assert "could not be checked" in page.by_id["separation"]
    assert page.by_id["accuracy"] == percent(predictions.evaluate()["accuracy"])
    assert "no images" in capsys.readouterr().err


def test_page_without_checkpoint(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    assert report.main([str(run)]) == 0
    page = Page((run / "report" / "index.html").read_text())
    assert page.images == []
    assert "no complete checkpoint" in page.by_id["images-missing"]
    assert "No leakage found" in page.by_id["separation"]


def test_page_reports_leakage_and_other_shards(run: Path) -> None:
    train = page_of(run, "train").by_id["separation"]
    n = len(read_predictions(run / "predictions" / "train.parquet"))
    assert "Leakage." in train
    assert f"{n} of the {n} evaluated images" in train
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(environment | {"dataset_version": "0" * 64}))
    assert "Other shards" in page_of(run).by_id["separation"]


@pytest.mark.slow
def test_page_compares_with_the_best_shortcut(run: Path) -> None:
    path = run / "predictions" / "shortcut.json"
    shortcut = json.loads(path.read_text())
    accuracy = read_predictions(run / "predictions" / "test.parquet").evaluate()["accuracy"]
    for border, verdict in ((accuracy, "No better than a shortcut"), (accuracy - 0.05, "adds 5.0 percentage points")):
        for name, score in shortcut["baselines"].items():
            score["accuracy"] = border if name == "border" else 0.0
        path.write_text(json.dumps(shortcut))
        assert verdict in page_of(run).by_id["shortcut-verdict"]
    for other in ({"dataset_version": "0" * 64}, {"fold": 1}):
        path.write_text(json.dumps(shortcut | other))
        assert "shortcut-verdict" not in page_of(run).by_id  # measured on other data


def with_predictions(run: Path, changed: Predictions) -> Page:
    (run / "predictions" / "test.parquet").write_bytes(table_bytes(changed, changed.row))
    return page_of(run)


def test_names_are_escaped(run: Path) -> None:
    predictions = read_predictions(run / "predictions" / "test.parquet")
    key = np.array([f"<script>alert({i})</script>" for i in range(len(predictions))], dtype=object)
    page = with_predictions(run, replace(predictions, key=key))
    assert "script" not in page.tags


@pytest.mark.slow
def test_a_training_that_has_not_ended_is_marked(run: Path) -> None:
    """The log ends at step 7, which is 2 epochs."""
    config_file, log = run / "config.yaml", run / "metrics.jsonl"
    settings = yaml.safe_load(config_file.read_text())

    def stopped(**changes: float | str | None) -> str | None:
        train = {name: value for name, value in changes.items() if name != "warmup_epochs"}
        optim = {name: value for name, value in changes.items() if name == "warmup_epochs"}
        changed = settings | {"train": settings["train"] | train, "optim": settings["optim"] | optim}
        config_file.write_text(yaml.safe_dump(changed))
        return page_of(run).by_id.get("stopped")

    text = stopped(epochs=10, warmup_epochs=1.0)
    assert text is not None
    assert "It stopped at step 7 of 35. This page is about step 7." in text
    assert "while the learning rate was still warming up" in (stopped(epochs=10, warmup_epochs=3.0) or "")
    assert stopped(epochs=2) is None
    assert page_of(run).by_id["steps"] == "7 of 7 planned steps."
    with log.open("a") as file:  # two evaluations without improvement
        for step in (8, 9):
            file.write(json.dumps({"kind": "eval", "split": "val", "step": step, "accuracy": 0.3, "time": 0}) + "\n")
    assert stopped(epochs=10, best="accuracy", patience=2) is None
    assert page_of(run).by_id["steps"].startswith("7 of 35 planned steps, ended because")
    assert stopped(epochs=10, best="accuracy", patience=3) is not None
    log.unlink()
    assert stopped(epochs=10) is None


@pytest.mark.parametrize(
    ("confidence", "correct", "verdict"),
    [
        ([0.9, 0.9, 0.9, 0.9], [True, True, False, False], "overconfident on average"),
        ([0.6, 0.6, 0.6, 0.6], [True, True, True, True], "underconfident on average"),
        # the mean confidence is right, but the ECE is 0.5: the sure ones are too sure, the others not sure enough
        ([1.0, 1.0, 0.5, 0.5], [True, False, True, True], "too confident for some images and not confident enough"),
        ([1.0, 1.0, 0.5, 0.5], [True, True, True, False], "well calibrated"),
    ],
)
def test_the_sentence_about_calibration_agrees_with_the_error_beside_it(
    confidence: list[float], correct: list[bool], verdict: str
) -> None:
    prob = np.array([[value, 1 - value] for value in confidence], dtype=np.float32)
    prob, label = np.tile(prob, (25, 1)), np.tile(1 - np.array(correct, dtype=int), 25)
    metrics = evaluate_predictions(label, prob, ("a", "b"))
    result = calibration(prob, metrics, np.arange(100))
    assert result["verdict"].startswith(verdict)
    assert (metrics["ece"] <= result["null"]["p95"]) == (verdict == "well calibrated")


def test_few_images_do_not_show_a_calibration_error() -> None:
    """The ECE of ten images is 0.2, but right probabilities often show as much."""
    prob = np.full((10, 2), [0.8, 0.2], dtype=np.float32)
    metrics = evaluate_predictions(np.array([0] * 6 + [1] * 4), prob, ("a", "b"))
    assert metrics["ece"] == pytest.approx(0.2)
    assert calibration(prob, metrics, np.arange(10))["verdict"].startswith("well calibrated, as far as so many images")


def test_the_page_names_the_calibration_of_its_checkpoint(run: Path) -> None:
    predictions = read_predictions(run / "predictions" / "test.parquet")
    assert "brain-dist calibrate" in page_of(run).by_id["calibrated"]
    calibration = fit_calibration(predictions, 0.1)
    (run / "calibration.json").write_text(calibration_json(calibration, {}))
    assert f"The temperature is {calibration.temperature:.3f}" in page_of(run).by_id["calibrated"]
    (run / "calibration.json").write_text(calibration_json(replace(calibration, step=8), {}))
    assert "is about step 8, not about this one" in page_of(run).by_id["calibrated"]


def test_class_names_are_shown_as_they_are(run: Path) -> None:
    predictions = read_predictions(run / "predictions" / "test.parquet")
    names = ("$x_{", "b^$", "<c>", "d")
    changed = replace(predictions, classes=names)
    (run / "predictions" / "test.parquet").write_bytes(table_bytes(changed, changed.row))
    files = read_run_files(run, "test")
    html = render(files, worst_mistakes(changed), typical_hits(changed), {}, None)
    assert ">$x {  " in html
    assert ">b^$  " in html
    assert "<c>" not in html


def test_old_shortcut_files_without_intervals_are_read(run: Path) -> None:
    path = run / "predictions" / "shortcut.json"
    shortcut = json.loads(path.read_text())
    assert page_of(run).by_id["shortcut-verdict"]
    for score in shortcut["baselines"].values():
        assert score.pop("accuracy_interval")
    path.write_text(json.dumps(shortcut))
    assert page_of(run).by_id["shortcut-verdict"]


def test_perfect_and_constant_predictions(run: Path) -> None:
    predictions = read_predictions(run / "predictions" / "test.parquet")
    correct = np.eye(4, dtype=np.float32)[predictions.label]
    page = with_predictions(run, replace(predictions, prob=correct))
    assert (page.by_id["accuracy"], page.by_id["kappa"]) == ("100.0\u00a0%", "1.000")
    first = replace(predictions, prob=np.eye(4, dtype=np.float32)[np.zeros(len(correct), dtype=int)])
    page = with_predictions(run, first)
    assert (page.by_id["kappa"], page.by_id["auc_macro"]) == ("–", "0.500")


def test_choice_of_errors_and_correct_predictions(run: Path) -> None:
    predictions = read_predictions(run / "predictions" / "test.parquet")
    n = len(predictions)
    confidence = np.linspace(0.5, 0.9, n, dtype=np.float32)
    correct = np.arange(n) % 4 == 0
    prob = np.tile((1 - confidence)[:, None] / 3, 4)
    prob[np.arange(n), (predictions.label + ~correct) % 4] = confidence
    group = np.array(["one patient"] * 5 + [f"g{i}" for i in range(n - 5)], dtype=object)[::-1]
    crafted = replace(predictions, prob=prob, group=group)
    errors, hits = np.flatnonzero(~correct)[::-1].tolist(), np.flatnonzero(correct).tolist()
    of_patient = [i for i in errors if group[i] == "one patient"]
    expected = [i for i in errors if i not in of_patient[2:]]
    assert len(of_patient) > 2
    assert confident_errors(crafted).tolist() == errors
    assert confident_errors(crafted, per_group=2).tolist() == expected
    assert worst_mistakes(crafted).tolist() == expected[:12]
    assert choose_examples(crafted, 5).tolist() == errors[:5]
    assert choose_examples(crafted, n).tolist() == [*errors, *hits]
    by_class = [[i for i in hits if predictions.label[i] == c] for c in range(4)]
    assert typical_hits(crafted).tolist() == [of_class[len(of_class) // 2] for of_class in by_class if of_class]


def test_user_errors_are_one_line(run: Path) -> None:
    with pytest.raises(UserError, match=r"brain_dist\.evaluate"):
        report.main([str(run), "--name", "absent"])
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"kind": "train", "st')  # written by a process that was killed
    assert "accuracy" in page_of(run).by_id
    with (run / "metrics.jsonl").open("a") as log:
        log.write("\n{}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 9"):
        page_of(run)


def test_optional_files(run: Path) -> None:
    for name in (
        "metrics.jsonl",
        "config.yaml",
        "environment.json",
        "predictions/shortcut.json",
        "predictions/train.parquet",
    ):
        (run / name).unlink()
    page = page_of(run)
    assert {"accuracy", "separation", "phantom"} <= set(page.by_id)
    assert "command" not in page.by_id


def test_numbers_are_not_rounded_to_0_or_1() -> None:
    values = [None, 0.0, 0.0004, 0.0005, 0.5, 0.9994, 0.99951, 1.0]
    texts = ["–", "0.0 %", "< 0.1 %", "0.1 %", "50.0 %", "99.9 %", "> 99.9 %", "1" + "00.0 %"]
    assert [percent(value).replace("\u00a0", " ") for value in values] == texts
    assert [number(value) for value in (None, 0.9996, 1.0, 0.5)] == ["–", ">\u00a00.999", "1.000", "0.500"]


@pytest.mark.parametrize("name", ["report", "shortcut", "adopt", "calibrate", "explain"])
def test_help_needs_no_heavy_import(name: str) -> None:
    code = (
        f"import sys, brain_dist.{name} as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'matplotlib', 'sklearn', 'scipy', 'pyarrow', 'timm', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


def card_of(run: Path) -> tuple[ModelCard, str]:
    """The model card beside the report, and its text without the metadata."""
    card = ModelCard.load(run / "report" / "MODEL_CARD.md")
    return card, card.text


def plain(text: str) -> str:
    """A number as the card shows it, with an ordinary space before the percent sign."""
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_the_card_s_numbers_are_the_metrics_of_the_predictions(finished_run: Path) -> None:
    card, text = card_of(finished_run)
    predictions = read_predictions(finished_run / "predictions" / "test.parquet")
    metrics = predictions.evaluate()
    results = {result.metric_type: result for result in card.data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "accuracy": metrics["accuracy"],
        "balanced_accuracy": metrics["balanced_accuracy"],
        "f1": metrics["f1_macro"],
        "roc_auc": metrics["auc_macro"],
        "matthews_correlation": metrics["mcc"],
        "expected_calibration_error": metrics["ece"],
        "brier_score": metrics["brier"],
        "negative_log_likelihood": metrics["nll"],
    }
    assert results["accuracy"].metric_value == sk.accuracy_score(predictions.label, predictions.predicted)
    assert {result.dataset_revision for result in results.values()} == {predictions.dataset_version}
    assert (card.data.model_name, card.data.library_name) == ("trial", "timm")
    assert f"| accuracy | {plain(percent(metrics['accuracy']))} | " in text
    assert f"| Brier score | {number(metrics['brier'])} | " in text
    for name, values in metrics["per_class"].items():
        shown = "no tumour" if name == "notumor" else "pituitary tumour" if name == "pituitary" else name
        assert f"| {shown} | {values['n']} | {plain(percent(values['sensitivity']))} | " in text


def test_the_card_says_what_is_not_known_and_has_its_limits(finished_run: Path) -> None:
    _, text = card_of(finished_run)
    limits = text.split("## Limitations")[1].split("## How to use")[0]
    assert "share no known patient and no copy with the training images" in limits
    assert "Not evaluated on another collection" in limits
    assert "One training" in limits
    assert "alone reaches" in limits  # the shortcut baseline
    assert "| developed by, contact, licence | not known |" in text
    assert "say nothing about patients" in text
    assert "### train:" not in text  # no evaluation on training images
    assert "7 of " in text.split("## Training")[1]


def test_the_card_does_not_call_probabilities_wrong_that_may_be_right(run: Path) -> None:
    """12 patients of 40 images that err together: 8 of them are right, with a confidence of 80 %."""
    files = read_run_files(run, "test")
    patient = np.repeat(np.arange(12), 40)
    table = files.predictions.take(np.zeros(480, dtype=np.int64))

    def limits(wrong: np.ndarray) -> str:
        label = np.where(wrong, 1, 0)
        prob = np.tile(np.array([0.8, 0.1, 0.06, 0.04], dtype=np.float32), (480, 1))
        changed = replace(table, label=label, prob=prob, group=np.array([f"p{n}" for n in patient], dtype=object))
        return " ".join(limitations(files, [replace(files, predictions=changed)]))

    open_question = "the probabilities are not calibrated, or the images of a patient err together: ECE 0.133, where"
    assert open_question in limits(patient >= 8)
    assert "the probabilities are not calibrated: ECE 0.800, where right ones" in limits(patient >= 0)
    assert "calibrated" not in limits(np.arange(480) % 5 == 0)


def test_the_card_keeps_the_tables_of_one_dataset_apart(run: Path) -> None:
    """Results that count what training knew are in its text, not in the metadata that other programs rank by."""
    predictions = run / "predictions"
    table = read_predictions(predictions / "test.parquet")
    known = np.where(np.arange(len(table)) % 2, "same group", "").astype(object)
    for name, allow_known in (("half", False), ("published", True)):
        changed = replace(table, known=known, allow_known=allow_known)
        (predictions / f"{name}.parquet").write_bytes(table_bytes(changed, table.row))
    content = render_card(run, "test")
    results = ModelCard(content).data.eval_results
    keys = [(r.dataset_type, r.dataset_config, r.dataset_split, r.metric_type) for r in results]
    assert len(set(keys)) == len(keys)
    accuracies = {result.dataset_config: result.metric_value for result in results if result.metric_type == "accuracy"}
    assert accuracies == {
        "test": table.evaluate()["accuracy"],
        "half": table.evaluate(known == "")["accuracy"],
    }
    assert "### published: the test images of" in content
    # the baselines are those of the images that count
    shortcut = json.loads((predictions / "shortcut.json").read_text())
    assert restrict(shortcut, table) == shortcut
    border = restrict(shortcut, replace(table, known=known).headline)["baselines"]["border"]["accuracy"]
    half = content.split("### half:")[1].split("### ")[0]
    assert f"| Image border only | {plain(percent(border))} |" in half


@pytest.mark.slow
def test_the_card_of_leaking_and_of_adopted_predictions(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = Path(read_predictions(run / "predictions" / "test.parquet").shards)
    for file in ("train.parquet", "test.parquet", "shortcut.json"):
        path = run / "predictions" / file
        if file == "test.parquet":
            table = read_predictions(path)
            path.write_bytes(table_bytes(replace(table, known=np.where(table.label == 0, "near copy", "")), table.row))
        else:
            path.unlink()
    assert report.main([str(run)]) == 0
    limits = card_of(run)[1].split("## Limitations")[1]
    known = int((table.label == 0).sum())
    assert f"training knew {known} of these images; they are left out of the results" in limits
    assert "no images of glioma: nothing is known about these classes" in limits
    assert "(shortcut baselines) was not measured" in limits
    assert "auc_macro" not in card_of(run)[0].content
    path.parent.joinpath("test.parquet").write_bytes(table_bytes(replace(table, adopted="x.csv"), table.row))
    (run / "report" / "MODEL_CARD.md").unlink()
    assert report.main([str(run)]) == 0
    assert "there is no model card: the predictions were adopted from a file" in capsys.readouterr().err
    assert not (run / "report" / "MODEL_CARD.md").exists()
    assert shards.is_dir()


def test_names_do_not_break_the_card(run: Path) -> None:
    predictions = read_predictions(run / "predictions" / "test.parquet")
    classes = ("a|b", "<script>", "c\nd", "e`f")
    changed = replace(predictions, classes=classes)
    (run / "predictions" / "test.parquet").write_bytes(table_bytes(changed, changed.row))
    text = render_card(run, "test")
    assert "<script>" not in text
    rows = [line for line in text.splitlines() if line.startswith(("| a\\|b", "| &lt;", "| c d", "| e'f"))]
    assert len(rows) == 4
    assert {line.replace("\\|", "").count("|") for line in rows} == {7}


def test_the_page_answers_the_checklists(run: Path) -> None:
    text = page_of(run).by_id["checklist"]
    assert "no test images of another collection" in text
    assert "shortcut baselines: what can be guessed without the disease" in text
    assert "random, from the seed" in text
    predictions = read_predictions(run / "predictions" / "test.parquet")
    changed = with_predictions(run, replace(predictions, adopted="x.csv")).by_id["checklist"]
    assert "predictions adopted from a file, which says nothing of their model" in changed
    assert "no test images known to be of that collection" in changed
    for path in (run / "predictions").glob("*.parquet"):
        path.unlink()
    elsewhere = replace(predictions, dataset_version="0" * 64, not_compared="the training's shards are gone")
    text = with_predictions(run, elsewhere).by_id["checklist"]
    assert "no test images known to be of that collection" in text
    assert "other collections; whether training knew some of their images was not checked" in text


def test_the_card_is_about_one_checkpoint(run: Path) -> None:
    predictions = run / "predictions"
    table = read_predictions(predictions / "test.parquet")
    other = replace(table, step=STEP + 5, prob=np.roll(table.prob, 1, axis=1), logit=np.roll(table.logit, 1, axis=1))
    (predictions / "later.parquet").write_bytes(table_bytes(other, other.row))
    for name, step, accuracy in (("test", STEP, table), ("later", STEP + 5, other)):
        content = render_card(run, name)
        assert f"| evaluated step | {step} |" in content
        results = ModelCard(content).data.eval_results
        assert {result.dataset_config for result in results} == {name}
        assert [r.metric_value for r in results if r.metric_type == "accuracy"] == [accuracy.evaluate()["accuracy"]]
        left = {"test": "later (step 12)", "later": "test (step 7)"}[name]
        assert f"Left out, as they are about other checkpoints: {left}." in content
        assert "| collection |" in content  # from the shards of the training
    (predictions / "later.parquet").unlink()
    assert "Left out" not in render_card(run, "test")


def test_baselines_of_other_images_are_not_shown_even_if_there_are_as_many(run: Path) -> None:
    """As many images of another split are not those that the baselines were tested on."""
    predictions = run / "predictions"
    count = len(read_predictions(predictions / "test.parquet"))
    train = read_predictions(predictions / "train.parquet").take(np.arange(count))
    (predictions / "train.parquet").write_bytes(table_bytes(train, train.row))
    assert page_of(run).by_id["shortcut-verdict"]
    assert "shortcut-verdict" not in page_of(run, "train").by_id


def test_patients_of_two_collections_may_have_the_same_name(run: Path) -> None:
    """Collections number their patients independently: patient 1 of one is not patient 1 of another."""
    files = read_run_files(run, "test")
    assert files.dataset is not None
    columns = dict(files.dataset.columns)
    test = columns["split"] == "test"
    columns["dataset"] = np.where(test, "tested", "trained").astype(object)
    columns["patient"] = np.full(len(test), "1", dtype=object)
    two = np.where(np.arange(len(files.predictions)) % 2, "tested", "second").astype(object)
    predictions = replace(files.predictions, dataset=two, patient=columns["patient"][test])
    changed = replace(
        files, predictions=predictions, table=predictions, dataset=replace(files.dataset, columns=columns)
    )
    assert separation(changed) == {"kind": "clean", "n": 0}
    shown = Page(render(changed, worst_mistakes(predictions), typical_hits(predictions), {}, None)).by_id
    assert shown["patients"] == "2"
    columns["dataset"] = np.full(len(test), "second", dtype=object)  # now half of them are
    half = {"kind": "leaking", "n": int((two == "second").sum())}
    assert separation(replace(changed, dataset=replace(files.dataset, columns=columns))) == half
