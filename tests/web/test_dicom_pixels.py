"""DICOM in the browser: its gray pixels equal those of Python's decoder, and what it does not read is said."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from damage import mutate
from module_page import page_with
from playwright.sync_api import Browser, Page
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from scans import write_dicom

from brain_dist.collection.decoding import BadImage
from brain_dist.collection.dicom import read_contents, read_modality, read_pixels
from brain_dist.collection.recipes import RecipePart
from brain_dist.collection.slicefiles import errors_as_bad_image, file_of
from brain_dist.collection.window import Window
from brain_dist.web import FILES

pytestmark = pytest.mark.slow
PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
WINDOWS = (
    Window(percentiles=(0.5, 99.5)),
    Window(percentiles=(2, 97)),
    Window(center=300.5, width=777.7),
    Window(file=True),
)
READ = """([files, window]) => import("./dicom.js").then(async ({ loadParser, readDicom }) => {
  if (!globalThis.dicomParser) await loadParser("./dicomParser.min.js");
  const encode = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return files.map((text) => {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    try {
      return readDicom(bytes, window).map(({ gray, ...rest }) => ({ ...rest, gray: encode(gray()) }));
    } catch (error) {
      return `${error.constructor.name}: ${error.message}`;
    }
  });
})"""


@pytest.fixture(scope="module")
def reader(browser: Browser, libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page that can import dicom.js and load the library that it needs."""
    library = libraries / "node_modules" / "dicom-parser" / "dist" / "dicomParser.min.js"
    with page_with(browser, tmp_path_factory.mktemp("reader"), (library, *FILES.glob("*.js"))) as page:
        yield page


def in_browser(page: Page, files: list[bytes], window: Window) -> list[Any]:
    """For each file its slices as JavaScript reads them, or the error with its class."""
    return page.evaluate(READ, [[base64.b64encode(data).decode() for data in files], window.as_dict()])


def in_python(data: bytes, window: Window) -> list[np.ndarray] | str:
    """The gray pixels uint8 [H, W] of each slice by Python's decoder, or its error."""
    part = RecipePart(format="dicom", window=window)
    try:
        with errors_as_bad_image():
            pixels = read_pixels(file_of(data), part)
            return [pixels(frame)[0] for frame, _ in read_contents(file_of(data), part).slices]
    except BadImage as error:
        return str(error)


def packaged() -> dict[str, bytes]:
    """pydicom's own test files, by name."""
    paths = (Path(pydicom.__file__).parent / "data" / "test_files").rglob("*")
    files = {path.name: path.read_bytes() for path in sorted(paths) if path.is_file()}
    return {name: data for name, data in files.items() if data[128:132] == b"DICM"}


def is_read(data: bytes) -> bool:
    """Whether the browser is to read this file."""
    dataset = pydicom.dcmread(file_of(data), stop_before_pixels=True)
    return (
        dataset.file_meta.get("TransferSyntaxUID") in PLAIN
        and str(dataset.get("PhotometricInterpretation")).startswith("MONOCHROME")
        and dataset.BitsAllocated in (8, 16)
    )


def item(**elements: Any) -> pydicom.Dataset:
    """A data set with these elements by keyword."""
    dataset = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def made(folder: Path) -> dict[str, bytes]:
    """Files of every kind that is read: signs, bits, rescales, windows, frames, sequences in both encodings."""
    rng = np.random.default_rng(4)
    unsigned = rng.integers(0, 4096, (3, 24, 31)).astype(np.uint16)
    signed = rng.integers(-2000, 3000, (24, 32)).astype(np.int16)
    byte = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "WindowCenter": 100, "WindowWidth": 150}

    def frames(count: int) -> pydicom.Sequence:
        return pydicom.Sequence(
            item(
                PixelValueTransformationSequence=[item(RescaleSlope=0.1 + 0.37 * n, RescaleIntercept=-3.3 * n)],
                FrameVOILUTSequence=[item(WindowCenter=[200 + 91.5 * n, 1], WindowWidth=[300.25, 2])],
            )
            for n in range(count)
        )

    window = {"WindowCenter": 700.5, "WindowWidth": 1001}
    files = {
        "unsigned": write_dicom(folder / "unsigned", unsigned[0], **window),
        "signed, rescaled": write_dicom(
            folder / "signed", signed, RescaleSlope=1.2345, RescaleIntercept=-17.3, **window
        ),
        "MONOCHROME1": write_dicom(folder / "inverted", unsigned[1], PhotometricInterpretation="MONOCHROME1", **window),
        "8 bits": write_dicom(folder / "byte", unsigned[2].astype(np.uint8).view(np.uint8), **byte),
        "frames": write_dicom(folder / "frames", unsigned, Modality="MR", **window),
        "enhanced": write_dicom(
            folder / "enhanced", unsigned, Modality="MR", PerFrameFunctionalGroupsSequence=frames(3)
        ),
        "shared": write_dicom(folder / "shared", unsigned, SharedFunctionalGroupsSequence=frames(1)),
        "LINEAR_EXACT": write_dicom(folder / "exact", unsigned[0], VOILUTFunction="LINEAR_EXACT", **window),
        "SIGMOID": write_dicom(folder / "sigmoid", unsigned[0], VOILUTFunction="SIGMOID", **window),
        "two windows": write_dicom(folder / "two", unsigned[0], WindowCenter=[900, 20], WindowWidth=[1, 30]),
        "constant": write_dicom(folder / "constant", np.full((20, 20), 7, np.uint16), Modality="CT", **window),
    }
    for name, path in list(files.items()):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        for sequence in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
            if sequence in dataset:
                dataset[sequence].is_undefined_length = True
        files[f"{name}, implicit"] = folder / f"{path.name}.implicit"
        dataset.save_as(files[f"{name}, implicit"], implicit_vr=True, little_endian=True)
    return {name: path.read_bytes() for name, path in files.items()}


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: next(iter(window.as_dict())))
def test_gray_pixels_equal_those_of_the_decoder(reader: Page, tmp_path: Path, window: Window) -> None:
    files = {**{name: data for name, data in packaged().items() if is_image(data) and is_read(data)}, **made(tmp_path)}
    slices = 0
    for (name, data), actual in zip(files.items(), in_browser(reader, list(files.values()), window), strict=True):
        expected = in_python(data, window)
        if isinstance(expected, str):
            assert isinstance(actual, str), f"{name}: {expected}"
            assert actual.startswith("Refused: "), f"{name}: {actual}"
            continue
        assert not isinstance(actual, str), f"{name}: {actual}"
        assert len(actual) == len(expected), name
        for index, (piece, pixels) in enumerate(zip(actual, expected, strict=True)):
            gray = np.frombuffer(base64.b64decode(piece["gray"]), np.uint8).reshape(piece["height"], piece["width"])
            np.testing.assert_array_equal(gray, pixels, err_msg=name)
            assert piece["frame"] == (index + 1 if len(expected) > 1 else None)
            assert piece["unlike"] == (read_modality(file_of(data)) not in (None, "MR", "OT", "SC"))
            slices += 1
    assert slices >= 50


def is_image(data: bytes) -> bool:
    return "Rows" in pydicom.dcmread(file_of(data), stop_before_pixels=True)


def test_other_files_are_refused_in_words(reader: Page) -> None:
    files = {name: data for name, data in packaged().items() if not (is_image(data) and is_read(data))}
    refusals = dict(zip(files, in_browser(reader, list(files.values()), WINDOWS[0]), strict=True))
    assert all(isinstance(text, str) and text.startswith("Refused: ") for text in refusals.values()), refusals
    for name, reason in {
        "MR_small_RLE.dcm": "is a DICOM file that is compressed (transfer syntax 1.2.840.10008.1.2.5), which",
        "image_dfl.dcm": "is a DICOM file that is compressed (transfer syntax 1.2.840.10008.1.2.1.99), which",
        "MR_small_bigendian.dcm": "is a DICOM file in big-endian order, which this edition does not read",
        "examples_rgb_color.dcm": "is not a gray image (photometric interpretation RGB)",
        "liver_1frame.dcm": "is a DICOM file with 1 bits for a value; 8 and 16 are read",
        "reportsi.dcm": "is a DICOM file without an image",
    }.items():
        assert reason in refusals[name]


def test_damaged_files_are_refused_or_read(reader: Page, tmp_path: Path) -> None:
    rng = random.Random(1)
    originals = [data for data in made(tmp_path).values() if len(data) < 10_000]
    damaged = [data[:128] + b"DICM" + mutate(data[132:], rng) for data in originals for _ in range(20)]
    results = in_browser(reader, damaged, WINDOWS[0])
    assert {text.partition(":")[0] for text in results if isinstance(text, str)} == {"Refused"}
    assert sum(not isinstance(text, str) for text in results) > 20
