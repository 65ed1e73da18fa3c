"""The page in a real browser: its answers, its states, its requests, and whether everyone can use it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_core_python.sync_playwright import Axe
from pictures import draw
from playwright.sync_api import Browser, Page, Route
from scans import write_dicom, write_nifti
from services import Service

import brain_dist
from benchmarks.support.chromium import chromium

ANSWERED = "article[data-state='answered']"
REFUSED = "article[data-state='refused']"
TIMEOUT = 60_000  # milliseconds
DROP = """async ([name, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def service(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(trained_run, tmp_path_factory.mktemp("page") / "own", "--max-mb", "0.5")
    yield service
    service.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


class Visit:
    """A page, the addresses that it asked, and what went wrong in it."""

    def __init__(self, browser: Browser, service: Service, **options: Any) -> None:
        context = browser.new_context(**options)
        self.page: Page = context.new_page()
        self.page.set_default_timeout(TIMEOUT)
        self.urls: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.urls.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console", lambda message: self.errors.append(message.text) if "Content Security" in message.text else None
        )
        self.page.goto(service.url)
        self.page.wait_for_selector("#about:not([hidden])")

    def close(self) -> None:
        assert not self.errors
        self.page.context.close()

    def violations(self) -> list[str]:
        """What axe finds that is serious or critical."""
        result = Axe().run(self.page)
        return [
            f"{x['id']}: {x['nodes'][0]['html']}"
            for x in result["violations"]
            if x["impact"] in ("serious", "critical")
        ]


@pytest.fixture
def visit(browser: Browser, service: Service) -> Iterator[Visit]:
    visit = Visit(browser, service)
    yield visit
    visit.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slices")
    draw(3).save(folder / "slice.png")
    stack = np.stack([np.asarray(draw(number)) for number in range(5)]).astype(np.uint16)
    write_dicom(folder / "IM0001", stack[1], Modality="MR", PatientName="Quux")
    write_nifti(folder / "volume.nii.gz", np.transpose(stack.astype(np.int16), (2, 1, 0)))
    (folder / "notes.txt").write_text("not an image")
    (folder / "large.png").write_bytes(bytes(600_000))
    (folder / "broken.png").write_bytes((folder / "slice.png").read_bytes()[:2000])
    return folder


def shown(prediction: brain_dist.Prediction) -> str:
    return {"notumor": "no tumour", "pituitary": "pituitary tumour"}.get(str(prediction.label), str(prediction.label))


def test_a_dropped_slice_gets_the_answer_of_predict(
    visit: Visit, service: Service, files: Path, trained_run: Path
) -> None:
    page = visit.page
    assert "Not a medical device." in page.inner_text("[role=note]")
    assert visit.violations() == []
    slice_file = files / "slice.png"
    page.evaluate(DROP, [slice_file.name, base64.b64encode(slice_file.read_bytes()).decode()])
    page.wait_for_selector(ANSWERED)
    (expected,) = brain_dist.load(trained_run, device="cpu").predict(slice_file)
    assert page.inner_text(".label strong").lower() == shown(expected)
    values = dict(
        zip(page.locator(".bars tbody th").all_inner_texts(), page.locator(".value").all_inner_texts(), strict=True)
    )
    assert values[shown(expected)] == f"{100 * (expected.probability or 0):.1f}\N{NO-BREAK SPACE}%"
    assert page.inner_text(".pill") == {"ok": "Decided", "unsure": "Undecided", None: "Not checked"}[expected.verdict]
    assert expected.set is not None
    assert page.locator(".member .inside").count() == len(expected.set)
    assert "70 %" in page.inner_text(".set")
    page.wait_for_selector("figcaption:has-text('LayerCAM')")
    before = page.evaluate("document.querySelector('canvas').toDataURL()")
    page.locator(".controls input").fill("0")
    assert page.evaluate("document.querySelector('canvas').toDataURL()") != before
    page.locator("select").select_option("pituitary")
    assert "pituitary tumour" in (page.locator("canvas").get_attribute("aria-label") or "")
    assert "slice.png" in page.inner_text("#status")
    assert visit.violations() == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    with page.expect_download() as download:
        page.click("#save")
    saved = json.loads(Path(download.value.path()).read_text())
    assert saved["notice"].startswith("Not a medical device")
    assert saved["results"][0]["file"] == "slice.png"
    assert saved["results"][0]["predictions"][0]["label"] == expected.label
    assert {re.sub(r"(//[^/]+/).*", r"\1", url) for url in visit.urls if not url.startswith(("data:", "blob:"))} == {
        service.url
    }
    assert not any("slice" in url for url in visit.urls)


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="needs Debian's poppler-utils")
def test_the_printed_page_says_what_it_must(
    browser: Browser, service: Service, files: Path, trained_run: Path, tmp_path: Path
) -> None:
    visit = Visit(browser, service, color_scheme="dark")
    page = visit.page
    names = ("slice.png", "IM0001", "notes.txt")
    page.set_input_files("#files", [files / name for name in names])
    page.wait_for_function("() => document.querySelectorAll('[data-state=answered]').length === 2")
    page.wait_for_selector(REFUSED)
    page.wait_for_function(
        "() => document.querySelectorAll('figcaption').length === 2 && !document.querySelector('[data-loading]')"
    )
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    visit.close()
    pdf = subprocess.run(
        ["pdftotext", "-layout", tmp_path / "page.pdf", "-"], capture_output=True, text=True, check=True
    )
    sheets = [re.sub(r"\s+", " ", sheet) for sheet in pdf.stdout.split("\f") if sheet.strip()]
    text = " ".join(sheets)
    for number, sheet in enumerate(sheets, 1):
        assert "Not a medical device. For research only, not for diagnosis or treatment." in sheet
        assert f"{number} of {len(sheets)}" in sheet
    assert "its answers must not be used for a diagnosis or a treatment" in text
    for prediction in brain_dist.load(trained_run, device="cpu").predict([files / name for name in names[:2]]):
        assert re.search(rf"{shown(prediction)} {100 * (prediction.probability or 0):.1f} %", text, re.IGNORECASE)
    assert text.count("What this number means") == 2
    assert "Such sets contain the true class in 70 % of cases" in text
    assert "The file is not an image, DICOM or NIfTI file." in text
    assert all(name in text for name in names)
    assert "sha256" in text
    assert re.search(r"Printed \S+", text)
    assert not any(control in text for control in ("Choose files", "Download JSON", "Strength", "Clear"))


def test_several_files_and_refusals(browser: Browser, service: Service, files: Path) -> None:
    visit = Visit(browser, service, viewport={"width": 360, "height": 740}, color_scheme="dark")
    page = visit.page
    names = ("IM0001", "volume.nii.gz", "notes.txt", "large.png", "broken.png")
    page.set_input_files("#files", [files / name for name in names])
    page.wait_for_function(
        "() => document.querySelectorAll('[data-state=answered], [data-state=refused]').length === 5"
    )
    states = [page.locator("article").nth(n).get_attribute("data-state") for n in range(5)]
    assert states == ["answered", "answered", "refused", "refused", "refused"]
    reasons = page.locator(f"{REFUSED} .reason").all_inner_texts()
    assert reasons[0] == "This kind of file is not supported. The file is not an image, DICOM or NIfTI file."
    assert reasons[1].startswith("Too large. The file is too large. At most 0.5 MB")
    assert reasons[2].startswith("The file cannot be predicted. The file cannot be decoded")
    assert page.inner_text(".slider output") == "2 (3 of 5)"
    page.locator(".slider input").focus()
    page.keyboard.press("ArrowRight")
    assert page.inner_text(".slider output") == "3 (4 of 5)"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert visit.violations() == []
    page.click("#clear")
    assert page.locator("article").count() == 0
    visit.close()


def test_a_busy_service_is_asked_again_and_a_lost_one_is_said(visit: Visit, files: Path) -> None:
    page = visit.page
    answers = iter([503, 503])

    def busy(route: Route) -> None:
        status = next(answers, None)
        if status is None:
            route.continue_()
            return
        problem = json.dumps({"type": "urn:brain-dist:busy", "title": "", "status": 503, "detail": "full"})
        route.fulfill(
            status=status, headers={"Retry-After": "1"}, content_type="application/problem+json", body=problem
        )

    page.route("**/v1/predict", busy)
    page.set_input_files("#files", files / "slice.png")
    page.wait_for_selector("text=The service is busy. Trying again in")
    page.click("text=Try now")
    page.wait_for_selector(ANSWERED)
    page.unroute("**/v1/predict")
    page.route("**/v1/predict", lambda route: route.abort())
    page.set_input_files("#files", files / "IM0001")
    page.wait_for_selector(f"{REFUSED} >> text=No connection.")
    page.unroute("**/v1/predict")
    page.click("text=Try again")
    page.wait_for_function("() => document.querySelectorAll('[data-state=answered]').length === 2")


def test_an_answer_of_something_else_is_said(visit: Visit, files: Path) -> None:
    """A proxy that asks the user to sign in answers 200 with a page of its own."""
    page = visit.page
    page.route("**/v1/predict", lambda route: route.fulfill(status=200, content_type="text/html", body="<html>"))
    page.set_input_files("#files", files / "slice.png")
    page.wait_for_selector(f"{REFUSED} >> text=No connection.")
    page.unroute("**/v1/predict")
    page.click("text=Try again")
    page.wait_for_selector(ANSWERED)


def test_a_slice_without_an_answer_shows_no_picture_of_another(visit: Visit, tmp_path: Path) -> None:
    stack = np.stack([np.asarray(draw(number)) for number in range(3)]).astype(np.float32)
    stack[2] = np.inf
    write_nifti(tmp_path / "volume.nii", np.transpose(stack, (2, 1, 0)))
    page = visit.page
    page.set_input_files("#files", tmp_path / "volume.nii")
    page.wait_for_selector("figcaption:has-text('What the network saw.')")
    assert page.evaluate("document.querySelector('canvas').width") > 8
    page.locator(".slider input").fill("2")
    page.locator(".slider input").dispatch_event("change")
    page.wait_for_selector("figcaption:has-text('This slice could not be read, so it has no picture.')")
    assert page.evaluate("document.querySelector('canvas').width") == 8
    assert page.inner_text(".answers") == "This slice contains values that are not finite."
    page.locator(".slider input").fill("0")
    page.locator(".slider input").dispatch_event("change")
    page.wait_for_selector("figcaption:has-text('What the network saw.')")


@pytest.mark.slow
def test_a_late_refusal_of_a_picture_does_not_replace_the_one_of_another_slice(visit: Visit, files: Path) -> None:
    page, held = visit.page, list[Route]()
    page.set_input_files("#files", files / "volume.nii.gz")
    page.wait_for_selector("figcaption:has-text('What the network saw.')")
    page.route("**/v1/explain?frame=1", lambda route: held.append(route))
    for frame in ("1", "3"):
        with page.expect_request(f"**/v1/explain?frame={frame}"):
            page.locator(".slider input").fill(frame)
            page.locator(".slider input").dispatch_event("change")
    page.wait_for_selector(".frame:not([data-loading])")
    assert held
    with page.expect_response("**/v1/explain?frame=1"):
        for late in held:
            late.fulfill(status=422, content_type="application/problem+json", body='{"detail": "no"}')
    page.wait_for_timeout(200)
    assert page.inner_text("figcaption").startswith("What the network saw.")


@pytest.mark.slow
def test_a_file_that_waits_while_another_one_needs_a_token_waits_for_it_too(visit: Visit, files: Path) -> None:
    """The answer to one file is to come again in a second; the answer to the other is that a token is needed."""
    page, statuses = visit.page, iter([503, 401])

    def refuse(route: Route) -> None:
        route.fulfill(
            status=next(statuses), headers={"Retry-After": "1"}, content_type="application/problem+json", body="{}"
        )

    page.route("**/v1/predict", refuse)
    page.route("**/v1/model", lambda route: route.fulfill(status=401, body="{}"))
    page.set_input_files("#files", [files / "slice.png", files / "IM0001"])
    text = "Waiting for the access token…"
    page.wait_for_function("text => document.body.innerText.split(text).length === 3", arg=text)
    assert page.locator(f"article[data-state='waiting'] >> text={text}").count() == 2
    page.unroute("**/v1/predict")
    page.unroute("**/v1/model")
    page.fill("#token", "any")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('[data-state=answered]').length === 2")


@pytest.mark.slow
def test_a_token_is_asked_for_and_kept_in_memory_only(
    browser: Browser, trained_run: Path, files: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("correct-horse-battery-staple")
    service = Service(trained_run, tmp_path / "own", "--token-file", str(tmp_path / "token"))
    context = browser.new_context()
    page = context.new_page()
    page.goto(service.url)
    page.fill("#token", "wrong-horse-battery-staple")
    page.keyboard.press("Enter")
    page.wait_for_selector("#banner >> text=The service does not accept this access token.")
    page.fill("#token", "wrong-horse-\N{EURO SIGN}-staple")  # no header can have it
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.activeElement.id === 'token' && document.activeElement.value === ''")
    assert page.locator("#banner").is_visible()
    page.fill("#token", "correct-horse-battery-staple")
    page.keyboard.press("Enter")
    page.wait_for_selector("#about:not([hidden])")
    page.set_input_files("#files", files / "slice.png")
    page.wait_for_selector(ANSWERED, timeout=TIMEOUT)
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0
    assert context.cookies() == []
    context.close()
    assert service.stop() == 0
