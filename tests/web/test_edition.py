"""The browser edition as a user gets it: exported, opened in Chromium, then used without a network."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import in_process, verb
from pictures import draw
from playwright.sync_api import Browser, Page

import brain_dist
from benchmarks.support.chromium import served
from brain_dist.store.dataset import open_dataset
from brain_dist.store.reader import ShardReader
from brain_dist.web.build import PACKAGE, RUNTIME, VERSION


def test_the_runtime_is_asked_for_with_the_command_that_installs_it(trained_run: Path, tmp_path: Path) -> None:
    command = f"run `npm install --prefix ort {PACKAGE}@{VERSION}` and add `--ort ort`"
    arguments = ["export", str(trained_run), "--to", "web", "--out", str(tmp_path / "out")]
    assert command in in_process(*arguments, expect=2).err
    assert command in in_process(*arguments, "--ort", str(tmp_path), expect=2).err
    dist = tmp_path / "node_modules" / PACKAGE / "dist"
    dist.mkdir(parents=True)
    for name in RUNTIME:
        (dist / name).touch()
    (dist.parent / "package.json").write_text(json.dumps({"version": "1.0.0"}))
    error = in_process(*arguments, "--ort", str(tmp_path), expect=2).err
    assert f"is version 1.0.0 of {PACKAGE}: {command}" in error
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def edition(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The browser edition of a run, made as docs/browser.md says."""
    npm = shutil.which("npm")
    assert npm is not None, "npm is not installed (apt-get install npm)"
    folder = tmp_path_factory.mktemp("edition")
    subprocess.run(
        [npm, "install", "--prefix", str(folder / "ort"), f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--no-audit"],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    run = shutil.copytree(trained_run, folder / "run")
    verb("outliers", str(run), "--alpha", "0.3")
    verb("export", str(run), "--to", "web", "--ort", str(folder / "ort"), "--out", str(folder / "out"))
    return folder / "out" / "web"


@pytest.fixture
def page(edition: Path, browser: Browser) -> Iterator[Page]:
    """The edition in a new window that has loaded it and keeps it for use without a network."""
    with served(edition) as address:
        context = browser.new_context()
        opened = context.new_page()
        errors: list[str] = []
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.goto(address)
        opened.wait_for_selector("#model:not([hidden])", timeout=60_000)
        opened.evaluate("navigator.serviceWorker.ready")
        opened.wait_for_function("caches.keys().then((names) => names.length === 1)")
        yield opened
        assert not errors
        context.close()


@pytest.mark.slow
def test_after_it_has_loaded_it_answers_like_predict_and_asks_nobody(
    edition: Path, trained_run: Path, phantom_shards: Path, page: Page, tmp_path: Path
) -> None:
    dataset = open_dataset(phantom_shards)
    reader = ShardReader(dataset)
    files = []
    for row in dataset.rows("test")[:6].tolist():
        files.append(tmp_path / f"{row}.png")
        files[-1].write_bytes(reader.read(row))
    draw(5, 700).save(tmp_path / "large.jpg", quality=95)
    files.append(tmp_path / "large.jpg")
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
    expected = brain_dist.load(edition.parents[1] / "run", device="cpu").predict(files)
    assert len(results) == len(expected) == len(files)
    for result, prediction in zip(results, expected, strict=True):
        (answer,) = result["predictions"]
        assert answer["label"] == prediction.label
        assert answer["verdict"] == prediction.verdict
        assert tuple(answer["set"]) == prediction.set
        assert answer["probabilities"] == pytest.approx(prediction.probabilities, abs=0.01)
        assert answer["ood_p"] == pytest.approx(prediction.ood_p, abs=0.1)
    page.reload()
    page.wait_for_selector("#model:not([hidden])", timeout=60_000)
    assert "Files do not leave this browser" in page.inner_text("#where")


@pytest.mark.slow
def test_files_that_it_does_not_read_are_refused_in_words(page: Page, tmp_path: Path) -> None:
    (tmp_path / "scan.dcm").write_bytes(bytes(128) + b"DICM" + bytes(64))
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    page.set_input_files("#files", sorted(tmp_path.iterdir()))
    page.wait_for_function("document.querySelectorAll('[data-state=refused]').length === 3")
    text = page.inner_text("#results")
    for reason in ("is a DICOM file, which this edition does not read", "is empty (0 bytes)", "is not an image"):
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
