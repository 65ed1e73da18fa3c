"""The modules of the browser edition beside the Python that they repeat, in a real browser."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import draw
from PIL import Image
from playwright.sync_api import Error, Page

from brain_dist.collection.measures import head_and_thumbnails
from brain_dist.collection.pixels import store_image
from brain_dist.ood.record import FILE as DETECTOR
from brain_dist.ood.record import Detector, read_detector, write_detector
from brain_dist.ood.scores import METHODS, fit
from brain_dist.prediction.answers import Prediction, answer, mean_of_slices
from brain_dist.prediction.maps import class_heat
from brain_dist.stream.contract import CalibrationEntry, Contract, WeightsEntry

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
CONTRACT = Contract(
    schema=1, size=64, color="gray", head_crop=True, stretch=False, channels=3, mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3), classes=CLASSES, dataset_version="v", weights=WeightsEntry(7, "w"),
)  # fmt: skip
SEEN = """async ([data, contract]) => {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const [{ decode }, pixels] = [await import("./decode.js"), await import("./pixels.js")];
  const [{ picture }] = await decode(new Blob([bytes]), contract);
  const pictures = picture();
  const seen = pixels.networkPixels(pictures, contract);
  const planes = seen.planes.map((plane) => [...plane]);
  return [pixels.headBox(pictures.gray), planes, [...pixels.networkInput(seen, contract)]];
}"""


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def seen(page: Page, data: bytes, contract: Contract) -> tuple[list[int], np.ndarray, list[int]]:
    """The head's box, the pixels uint8 [planes, S, S] and the network's input, flat, that the browser computes."""
    text = base64.b64encode(data).decode()
    box, planes, values = page.evaluate(SEEN, [text, json.loads(contract.to_json())])
    return box, np.array(planes, dtype=np.uint8).reshape(-1, contract.size, contract.size), values


def heads() -> dict[str, bytes]:
    """Pictures of every kind that browsers decode."""
    gray = draw(3, 300)
    half_seen = Image.merge("RGBA", [gray] * 3 + [gray.point(lambda v: 255 if v > 90 else 100)])
    tinted = Image.merge("RGB", [gray, gray.point(lambda v: v * 0.8), gray.point(lambda v: v * 0.6)])
    framed = Image.new("L", (700, 560), 0)
    framed.paste(draw(4, 420), (180, 60))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    return {
        "gray JPEG": encoded(gray, "JPEG", quality=95),
        "colour JPEG": encoded(tinted, "JPEG", quality=90),
        "turned JPEG": encoded(framed, "JPEG", quality=95, exif=rotated),
        "gray PNG": encoded(draw(5, 301), "PNG"),
        "framed PNG": encoded(framed, "PNG"),
        "colour PNG": encoded(tinted, "PNG"),
        "palette PNG": encoded(tinted.convert("P"), "PNG"),
        "transparent PNG": encoded(half_seen, "PNG"),
        "small PNG": encoded(draw(6, 40), "PNG"),
        "WebP": encoded(gray, "WEBP", lossless=True),
        "BMP": encoded(gray, "BMP"),
    }


@pytest.mark.parametrize("name", heads())
@pytest.mark.parametrize(
    "change", [{}, {"stretch": True}, {"head_crop": False, "size": 100}], ids=["head", "stretch", "whole"]
)
def test_the_browser_sees_the_pixels_of_prediction(modules: Page, name: str, change: dict[str, Any]) -> None:
    contract = replace(CONTRACT, **change)
    data = heads()[name]
    stored = store_image(data)
    head = head_and_thumbnails(stored.pixels)[0]
    expected = contract.pixels(stored, head).astype(int)
    box, planes, values = seen(modules, data, contract)
    assert tuple(box) == head
    difference = np.abs(planes[0].astype(int) - expected)
    # libjpeg reduces, and OpenCV makes colours gray, by sums of their own; a stretch enlarges the difference
    limit = 10 if name.endswith("JPEG") else 2 if name.startswith("colour") else 1
    assert difference.max() <= limit * (2 if contract.stretch else 1)
    assert difference.mean() < 0.7
    assert values == planes.ravel().tolist()


def test_colours_are_kept_where_the_contract_says_so(modules: Page) -> None:
    data, contract = heads()["colour PNG"], replace(CONTRACT, color="rgb")
    stored = store_image(data)
    expected = contract.pixels(stored, head_and_thumbnails(stored.pixels)[0]).astype(int)
    _, planes, values = seen(modules, data, contract)
    assert values == planes.ravel().tolist()
    repeated = seen(modules, heads()["gray PNG"], contract)[2]
    assert repeated == 3 * repeated[: 64 * 64]
    assert np.abs(planes.transpose(1, 2, 0).astype(int) - expected).max() <= 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (encoded(Image.fromarray(np.full((40, 40), 9000, np.uint16)), "PNG"), "is a 16-bit PNG"),
        (b"<!doctype html><p>not found</p>", "is not an image that this browser can decode"),
        (encoded(draw(3), "JPEG")[:200], "is not an image that this browser can decode"),
        (encoded(draw(3, 12), "PNG"), "is 12 × 12 pixels; a slice has at least 16 on each side"),
    ],
    ids=["empty", "16-bit PNG", "web page", "truncated", "tiny"],
)
def test_a_file_that_cannot_be_used_is_refused_in_words(modules: Page, data: bytes, reason: str) -> None:
    with pytest.raises(Error, match=reason):
        seen(modules, data, CONTRACT)


CALIBRATIONS = {
    "none": None,
    "set": CalibrationEntry(step=7, temperature=1.7, alpha=0.1, threshold=0.6),
    "no threshold": CalibrationEntry(step=7, temperature=0.6, alpha=0.1),
    "another step": CalibrationEntry(step=6, temperature=3.0, alpha=0.1, threshold=0.2),
}


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("ood_p", [None, 0.01, 0.4])
def test_answers_equal_those_of_prediction(modules: Page, calibration: str, ood_p: float | None) -> None:
    contract = replace(CONTRACT, calibration=CALIBRATIONS[calibration])
    rng = np.random.default_rng(5)
    for logit in rng.normal(0, 2, (8, 4)).astype(np.float32):
        unlike = bool(rng.random() < 0.3)
        pixels = np.zeros((2, 2), np.uint8)
        expected = answer("x", None, pixels, logit, ood_p, contract, unlike=unlike, limit=0.05)
        given = [logit.tolist(), ood_p, json.loads(contract.to_json()), {"unlike": unlike, "limit": 0.05}]
        actual = modules.evaluate("async (given) => (await import('./answers.js')).answer(...given)", given)
        assert actual["label"] == expected.label
        assert actual["verdict"] == expected.verdict
        assert actual["set"] == (None if expected.set is None else list(expected.set))
        assert actual["probabilities"] == pytest.approx(expected.probabilities, abs=1e-12)
        assert actual["probability"] == pytest.approx(expected.probability, abs=1e-12)


def test_the_mean_of_slices_equals_that_of_prediction(modules: Page) -> None:
    rng = np.random.default_rng(6)
    given = [json.loads(CONTRACT.to_json()), []]
    for verdicts in (["ok", "unsure", None], ["ok", "not_like_training", "unsure"], ["not_like_training"] * 2, ["ok"]):
        rows = [rng.dirichlet(np.full(4, 0.2)).tolist() for _ in verdicts]
        named = [dict(zip(CLASSES, row, strict=True)) for row in rows]
        slices = [
            Prediction("x", n, probabilities=p, verdict=v) for n, (p, v) in enumerate(zip(named, verdicts, strict=True))
        ]
        given[1] = [{"probabilities": each.probabilities, "verdict": each.verdict} for each in slices]
        actual = modules.evaluate(
            "async ([contract, slices]) => (await import('./answers.js')).meanOfSlices(slices, contract)", given
        )
        expected = mean_of_slices(slices)
        if expected is None:
            assert actual is None
            continue
        assert (actual["frame"], actual["label"], actual["verdict"]) == ("mean", expected.label, None)
        assert actual["probabilities"] == pytest.approx(expected.probabilities, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_p_values_equal_those_of_the_detector(modules: Page, tmp_path: Path, method: str) -> None:
    rng = np.random.default_rng(2)
    features, label = rng.normal(0, 1, (80, 12)) + 3, rng.integers(0, 4, 80)
    reference = fit(method, features, label)
    new, logits = rng.normal(0, 1.5, (20, 12)).astype(np.float32) + 3, rng.normal(0, 2, (20, 4)).astype(np.float32)
    score = np.sort(reference.scores(rng.normal(0, 1, (40, 12)) + 3, rng.normal(0, 2, (40, 4))))
    write_detector(tmp_path, Detector(reference, score, np.full(40, 0.5), 20, 0.05, "w", {}))
    detector = read_detector(tmp_path)
    assert detector is not None
    data = base64.b64encode((tmp_path / DETECTOR).read_bytes()).decode()
    actual = modules.evaluate(
        """async ([data, features, logits]) => {
          const { Detector } = await import("./answers.js");
          const detector = new Detector(Uint8Array.from(atob(data), (character) => character.charCodeAt(0)).buffer);
          return [detector.limit, features.map((values, i) => detector.pValue(values, logits[i]))];
        }""",
        [data, new.tolist(), logits.tolist()],
    )  # fmt: skip
    assert actual[0] == 0.05
    assert actual[1] == pytest.approx(detector.p_values(new, logits).tolist(), abs=1e-9)
    assert len(set(actual[1])) > 3


@pytest.mark.parametrize("shape", [(5, 5), (3, 4), (1, 1)])
def test_heat_maps_equal_those_of_the_service(modules: Page, shape: tuple[int, int]) -> None:
    for cells in (np.random.default_rng(1).normal(0, 2, shape).astype(np.float32), np.full(shape, -1, np.float32)):
        given = [cells.ravel().tolist(), shape[1], shape[0], 32]
        actual = modules.evaluate("async (given) => [...(await import('./pixels.js')).heat(...given)]", given)
        np.testing.assert_allclose(np.reshape(actual, (32, 32)), class_heat(cells, 32), atol=2e-6)
