"""The browser edition as a user gets it: exported, opened in Chromium, then used without a network."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from helpers import ROOT, in_process, verb
from pictures import draw
from PIL import Image
from playwright.sync_api import Browser, Page
from scans import write_dicom

import brain_dist
from benchmarks.support.chromium import served
from brain_dist.store.dataset import open_dataset
from brain_dist.store.reader import ShardReader
from brain_dist.web import FILES
from brain_dist.web.build import INSTALL, LIBRARIES, write_sums


def test_the_libraries_are_asked_for_with_the_command_that_installs_them(trained_run: Path, tmp_path: Path) -> None:
    command = f"run `{INSTALL}` and add `--npm npm`"
    assert INSTALL in (ROOT / "docs" / "browser.md").read_text()
    arguments = ["export", str(trained_run), "--to", "web", "--out", str(tmp_path / "out")]
    assert command in in_process(*arguments, expect=2).err
    for name, (version, _, files) in LIBRARIES.items():
        package = tmp_path / "node_modules" / name
        assert f"{package / 'package.json'} is missing" in in_process(*arguments, "--npm", str(tmp_path), expect=2).err
        for file in files:
            (package / file).parent.mkdir(parents=True, exist_ok=True)
            (package / file).touch()
        (package / "package.json").write_text("{")
        error = in_process(*arguments, "--npm", str(tmp_path), expect=2).err
        assert f"{package / 'package.json'} is damaged (it is not JSON); {command}" in error
        (package / "package.json").write_text(json.dumps({"version": "1.0.0"}))
        error = in_process(*arguments, "--npm", str(tmp_path), expect=2).err
        assert f"has version 1.0.0 of {name}, not {version}: {command}" in error
        (package / "package.json").write_text(json.dumps({"version": version}))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def edition(trained_run: Path, libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The browser edition of a run, made as docs/browser.md says."""
    folder = tmp_path_factory.mktemp("edition")
    run = shutil.copytree(trained_run, folder / "run")
    verb("outliers", str(run), "--alpha", "0.3")
    verb("export", str(run), "--to", "web", "--npm", str(libraries), "--out", str(folder / "out"))
    return folder / "out" / "web"


@pytest.fixture
def page(edition: Path, browser: Browser) -> Iterator[Page]:
    """The edition in a new window that has loaded it and keeps it for use without a network."""
    with served(edition) as address:
        context = browser.new_context()
        opened = context.new_page()
        errors: list[str] = []
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.goto(f"{address}model.json")
        opened.evaluate("caches.open('of another page of this server')")
        opened.goto(address)
        opened.wait_for_selector("#model:not([hidden])", timeout=60_000)
        opened.evaluate("navigator.serviceWorker.ready")
        assert len(opened.evaluate("caches.keys()")) == 2
        assert opened.evaluate("caches.has('of another page of this server')")
        yield opened
        assert not errors
        context.close()


def test_checksums_can_be_written_again(tmp_path: Path) -> None:
    """They are written with the edition, and again when its certificate has the times of all exports."""
    shutil.copy(FILES / "offline.js", tmp_path)
    (tmp_path / "parity.json").write_text("{}")
    write_sums(tmp_path)
    first = (tmp_path / "offline.js").read_text()
    write_sums(tmp_path)
    assert (tmp_path / "offline.js").read_text() == first
    (tmp_path / "parity.json").write_text('{"speed": []}')
    write_sums(tmp_path)
    second = (tmp_path / "offline.js").read_text()
    assert second != first
    assert second.count("// of the edition ") == 1
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=tmp_path, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["SHA256SUMS", "offline.js", "parity.json"]


@pytest.mark.slow
def test_a_new_edition_replaces_the_one_that_a_browser_keeps(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "web"

    def export(title: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(FILES / "offline.js", folder)
        script = "<script>navigator.serviceWorker.register('offline.js')</script>"
        (folder / "index.html").write_text(f"<title>{title}</title>{script}")
        write_sums(folder)
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)

    export("old")
    with served(folder) as address:
        context = browser.new_context()
        opened = context.new_page()
        opened.goto(address)
        opened.evaluate("navigator.serviceWorker.ready.then(() => 1)")
        kept = opened.evaluate("caches.keys()")
        export("new")
        opened.goto(address)  # from the copy; the browser sees behind it that there is a new edition
        for _ in range(240):
            names = opened.evaluate("caches.keys()")
            if len(names) == 1 and names != kept:
                break
            opened.wait_for_timeout(250)
        context.set_offline(True)
        opened.goto(address)
        assert opened.title() == "new"
        context.close()


@pytest.mark.slow
def test_after_it_has_loaded_it_answers_like_predict_and_asks_nobody(
    edition: Path, phantom_shards: Path, page: Page, tmp_path: Path
) -> None:
    dataset = open_dataset(phantom_shards)
    reader = ShardReader(dataset)
    files = []
    for row in dataset.rows("test")[:6].tolist():
        files.append(tmp_path / f"{row}.png")
        files[-1].write_bytes(reader.read(row))
    draw(5, 700).save(tmp_path / "large.jpg", quality=95)
    predictor = brain_dist.load(edition.parents[1] / "run", device="cpu")
    like = next(file for file in files if predictor.predict(file)[0].verdict != "not_like_training")
    slice_ = np.asarray(Image.open(like).convert("L")).astype(np.uint16)
    write_dicom(tmp_path / "IM0001", 9 * slice_, Modality="MR", WindowCenter=900, WindowWidth=1800)
    write_dicom(tmp_path / "frames.dcm", np.stack([9 * slice_, 5 * slice_[:, ::-1], slice_]), Modality="MR")
    write_dicom(tmp_path / "ct.dcm", slice_, Modality="CT")
    files += [tmp_path / name for name in ("large.jpg", "IM0001", "frames.dcm", "ct.dcm")]
    requests: list[str] = []
    page.context.set_offline(True)
    page.on("request", lambda request: requests.append(request.url))
    page.set_input_files("#files", files)
    page.wait_for_function(f"document.querySelectorAll('[data-state=answered]').length === {len(files)}")
    page.wait_for_function("document.querySelectorAll('figure [data-loading]').length === 0")
    assert not [url for url in requests if not url.startswith(("data:", "blob:"))]
    with page.expect_download() as download:
        page.click("#save")
    results = json.loads(Path(download.value.path()).read_text())["results"]
    expected = predictor.predict(files)
    answers = [answer for result in results for answer in result["predictions"]]
    assert len(results) == len(files)
    assert [answer["frame"] for answer in answers] == [prediction.frame for prediction in expected]
    assert [answer["frame"] for answer in answers[-5:]] == [1, 2, 3, "mean", None]
    for answer, prediction in zip(answers, expected, strict=True):
        assert answer["label"] == prediction.label
        assert answer["verdict"] == prediction.verdict
        assert answer["set"] == (None if prediction.set is None else list(prediction.set))
        assert answer["probabilities"] == pytest.approx(prediction.probabilities, abs=0.01)
        if prediction.ood_p is not None:
            assert answer["ood_p"] == pytest.approx(prediction.ood_p, abs=0.1)
    assert answers[-1]["verdict"] == "not_like_training"
    ok = [prediction for prediction in expected if prediction.frame is None and prediction.verdict == "ok"]
    assert ("That does not make it an MRI of a brain." in page.inner_text("#results")) == bool(ok)
    card = page.locator("article", has_text="frames.dcm")
    before = card.locator("canvas").evaluate("(canvas) => canvas.toDataURL()")
    card.locator(".slider input").fill("2")
    card.locator(".slider input").dispatch_event("change")
    page.wait_for_function("document.querySelectorAll('figure [data-loading]').length === 0")
    assert card.locator("canvas").evaluate("(canvas) => canvas.toDataURL()") != before
    assert not [url for url in requests if not url.startswith(("data:", "blob:"))]
    page.reload()
    page.wait_for_selector("#model:not([hidden])", timeout=60_000)
    assert "Files do not leave this browser" in page.inner_text("#where")


@pytest.mark.slow
def test_files_that_it_does_not_read_are_refused_in_words(page: Page, tmp_path: Path) -> None:
    compressed = pydicom.data.get_testdata_file("MR_small_RLE.dcm", download=False)
    shutil.copy(str(compressed), tmp_path / "compressed.dcm")
    (tmp_path / "damaged.dcm").write_bytes(bytes(128) + b"DICM" + bytes(64))
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    page.set_input_files("#files", sorted(tmp_path.iterdir()))
    page.wait_for_function("document.querySelectorAll('[data-state=refused]').length === 4")
    text = page.inner_text("#results")
    for reason in (
        "The file is a DICOM file that is compressed (transfer syntax 1.2.840.10008.1.2.5), which this edition does not"
        " read; use `brain-dist predict` or `brain-dist serve`.",
        "The file cannot be decoded (its data elements are damaged or incomplete).",
        "is empty (0 bytes)",
        "is not an image",
    ):
        assert reason in text


@pytest.mark.slow
def test_its_checksums_and_certificate_are_those_of_its_files(edition: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=edition, check=True)
    listed = {line[66:] for line in (edition / "SHA256SUMS").read_text().splitlines()}
    files = {str(path.relative_to(edition)) for path in edition.rglob("*") if path.is_file()}
    assert files - listed == {"SHA256SUMS"}
    certificate = json.loads((edition / "parity.json").read_text())
    assert certificate["other_labels"] == 0
    assert np.isfinite(certificate["max_logit"])
