"""Collections as people really have them: odd names, tables of spreadsheets, masks in folders of their own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from pictures import add_lesion, draw
from PIL import Image
from scans import write_dicom

from brain_dist.collection.discovery import find_records
from brain_dist.collection.examination import examine_records
from brain_dist.collection.masks import read_mask
from brain_dist.collection.recipes import default_recipe, parse_recipe
from brain_dist.collection.records import Record
from brain_dist.common.workers import worker_pool
from brain_dist.errors import UserError


def write_images(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(len(name)).save(path)


def find(source: Path, part: dict[str, object], *classes: str) -> tuple[list[Record], list[str]]:
    recipe = parse_recipe({"classes": list(classes or ("notumor", "tumor")), "parts": [part]}, "it")
    return find_records(recipe, source)


@pytest.mark.parametrize(
    "classes",
    [
        ("IDH+", "IDH-"),
        ("+", "-"),
        ("глиома", "менингиома"),
        ("胶质瘤", "脑膜瘤"),
        ("glioblastoma", "glioma"),  # one is a common spelling of the other
        ("no", "notumor"),
        ("a b", "a_b"),
    ],
)
def test_every_class_keeps_its_own_folder_whatever_its_name_is(tmp_path: Path, classes: tuple[str, str]) -> None:
    for name in classes:
        write_images(tmp_path, f"{name}/{name}.png")
    records, _ = find(tmp_path, {}, *classes)
    labelled = {record.path: classes[record.label] for record in records}
    assert labelled == {f"{name}/{name}.png": name for name in classes}
    rows = [f"{name}/{name}.png,{name}" for name in classes]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    part = {"table": {"file": "t.csv", "path": "path", "label": "label"}}
    assert [(record.path, record.label) for record in find(tmp_path, part, *classes)[0]] == [
        (record.path, record.label) for record in records
    ]
    (tmp_path / "t.csv").write_text(f"path,label\n{classes[0]}/{classes[0]}.png,", encoding="utf-8")
    with pytest.raises(UserError, match="line 2: '' is not one of the classes"):
        find(tmp_path, part, *classes)


def test_a_spelling_of_two_classes_is_none_of_them(tmp_path: Path) -> None:
    write_images(tmp_path, "IDH+/a.png", "IDH-/b.png", "idh/c.png")
    with pytest.raises(UserError, match=r"the folder idh is not one of the classes IDH\+, IDH-"):
        find(tmp_path, {}, "IDH+", "IDH-")
    for aliases in ({"a": ["x"], "b": ["x"]}, {"a": ["b"]}):
        with pytest.raises(UserError, match=r"parts\[0\]: aliases: '[xb]' would name both a and b; use it for one"):
            find(tmp_path, {"aliases": aliases}, "a", "b")


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_composed_and_decomposed_letters_are_the_same_name(tmp_path: Path, stored: str) -> None:
    """macOS decomposes the letters of file names; a table has them composed, or the other way round."""
    other = "NFD" if stored == "NFC" else "NFC"
    image, mask = (unicodedata.normalize(form, "tümör/hasta-ü") for form in (stored, other))
    write_images(tmp_path, f"{image}.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(add_lesion(draw(1), 1)[1]).save(tmp_path / "masks" / f"{Path(mask).name}.png")
    (tmp_path / "p.csv").write_text(f"id,who\n{Path(mask).name},A\n", encoding="utf-8")
    (tmp_path / "t.csv").write_text(f"path,label\n{mask}.png,tumor\n", encoding="utf-8")
    part = {
        "table": {"file": "t.csv", "path": "path", "label": "label"},
        "patients": {"file": "p.csv", "id": "id", "patient": "who"},
        "masks": {"folder": "masks"},
    }
    (record,) = find(tmp_path, part)[0]
    assert (record.path, record.patient, record.mask) == (f"{image}.png", "A", f"masks/{Path(mask).name}.png")
    name = {"folders": {"tumor": unicodedata.normalize(stored, "tümör")}, "attributes_from_name": "(?P<patient>h.*ü)"}
    assert find(tmp_path, name)[0][0].patient == unicodedata.normalize("NFC", "hasta-ü")
    with pytest.raises(UserError, match="1 excluded files"):
        find(tmp_path, {**name, "exclude": unicodedata.normalize(other, "-ü\\.")})


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_tables_of_spreadsheets_are_read(tmp_path: Path, delimiter: str) -> None:
    write_images(tmp_path, "glioma/1.png", "notumor/2.png")
    rows = [["id", " patient ", "note"], ["1", '"P, 1"', ""], ["2", "P2", '"a ""b"""']]
    (tmp_path / "patients.csv").write_text("\n".join(map(delimiter.join, rows)), encoding="utf-8-sig")
    records, warnings = find_records(default_recipe(tmp_path), tmp_path)
    assert [record.patient for record in records] == ["P, 1", "P2"]
    assert warnings == []


def test_a_table_of_patients_that_is_of_no_use_is_said(tmp_path: Path) -> None:
    write_images(tmp_path, "glioma/1.png", "notumor/2.png")
    table = tmp_path / "patients.csv"
    table.write_text("image,patient\n1,A\n")
    assert find_records(default_recipe(tmp_path), tmp_path)[1] == [
        "patients.csv is not used: without a recipe it needs the columns id and patient, and a recipe has to name it"
        " under `patients`"
    ]
    table.write_text("id,patient\nscan1,A\nscan2,B\n")
    assert find_records(default_recipe(tmp_path), tmp_path)[1] == [
        "patients.csv has patients, but of none of the images: its column id must hold their names, such as"
        " glioma/1.png"
    ]
    table.write_text('id,patient\n1,"A\n2,B\n')  # a quote that does not end swallows the rest
    with pytest.raises(UserError, match=r"table of patients .*patients\.csv cannot be read \(unexpected end of data\)"):
        find_records(default_recipe(tmp_path), tmp_path)
    table.write_text("id,patient\n1,Müller\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"patients\.csv cannot be read .*; save it as CSV in UTF-8"):
        find_records(default_recipe(tmp_path), tmp_path)


def test_a_row_that_fits_several_images_is_said(tmp_path: Path) -> None:
    write_images(tmp_path, "notumor/1.png", "tumor/1.png", "tumor/2.png")
    (tmp_path / "t.csv").write_text("id,who,x,y,w,h\n1,A,.5,.5,.1,.1\n2,B,.5,.5,.1,.1\n")
    warning = "t.csv: 1 images share the row of another image of the same name, such as notumor/1.png and tumor/1.png;"
    keys = {"id": "id", "center_x": "x", "center_y": "y", "width": "w", "height": "h"}
    for part in ({"patients": {"file": "t.csv", "id": "id", "patient": "who"}}, {"boxes": {"file": "t.csv", **keys}}):
        assert [text[: len(warning)] for text in find(tmp_path, part)[1] if text.startswith("t.csv")] == [warning]


def test_masks_in_a_folder_below_the_images_are_no_images(tmp_path: Path) -> None:
    image, mask = add_lesion(draw(1), 1)
    (tmp_path / "scans" / "masks").mkdir(parents=True)
    for name, pixels in (("a", mask), ("b", np.zeros_like(mask))):
        image.save(tmp_path / "scans" / f"{name}.jpg")
        Image.fromarray(pixels).save(tmp_path / "scans" / "masks" / f"{name}.png")
    masks = {"folder": "scans/masks", "lesion": "tumor", "empty": "notumor"}
    records, _ = find(tmp_path, {"masks": masks})
    assert [(record.path, record.label) for record in records] == [("scans/a.jpg", 1), ("scans/b.jpg", 0)]
    part = {"folders": {"tumor": "scans"}, "masks": {"folder": "scans/masks"}}
    assert [(record.path, record.mask) for record in find(tmp_path, part)[0]] == [
        ("scans/a.jpg", "scans/masks/a.png"), ("scans/b.jpg", "scans/masks/b.png")
    ]  # fmt: skip


def test_masks_that_do_not_fit_the_images_are_said(tmp_path: Path) -> None:
    write_images(tmp_path, "notumor/1.png", "tumor/1.png", "tumor/2.png")
    part = {"ignore": ["masks"], "masks": {"folder": "masks", "suffix": "_mask"}}
    assert find(tmp_path, part)[1] == [".: no image has a mask: tumor/2.png has no masks/2_mask.png"]
    write_images(tmp_path, "masks/2_mask.png", "masks/1_mask.png")
    with pytest.raises(
        UserError,
        match=r"masks/1_mask\.png would be the mask of notumor/1\.png and of tumor/1\.png, which are of different",
    ):
        find(tmp_path, part)
    (tmp_path / "notumor" / "1.png").rename(tmp_path / "notumor" / "0.png")
    write_images(tmp_path, "tumor/deep/2.png")
    (tmp_path / "p.csv").write_text("id,who\ntumor/2.png,A\ntumor/deep/2.png,B\n")
    patients = {"patients": {"file": "p.csv", "id": "id", "patient": "who", "partial": True}}
    with pytest.raises(
        UserError, match=r"masks/2_mask\.png would be the mask of tumor/2\.png and of tumor/deep/2\.png"
    ):
        find(tmp_path, part | patients)
    assert find(tmp_path, part)[1] == [".: 1 images share the mask of another image of the same name"]
    write_images(tmp_path, "masks/2_mask.bmp")
    with pytest.raises(UserError, match=r"masks/2_mask\.bmp and masks/2_mask\.png would both be the mask of tumor/2"):
        find(tmp_path, part)


def test_what_is_transparent_or_black_in_a_mask_is_no_lesion() -> None:
    mask = add_lesion(draw(1), 1)[1]
    white, alpha = Image.new("L", (96, 96), 255), Image.fromarray(mask.astype(np.uint8) * 255)
    inverted = Image.fromarray((~mask).astype(np.uint8), "P")  # the lesion is 0, and white in the palette
    inverted.putpalette([255, 255, 255, 0, 0, 0])
    paper = Image.merge("RGB", [alpha] * 3).convert("CMYK")
    for image, kind in (
        (Image.merge("LA", [white, alpha]), "PNG"),
        (Image.merge("RGBA", [white, white, white, alpha]), "PNG"),
        (inverted, "PNG"),
        (paper, "TIFF"),
        (Image.merge("RGB", [alpha] * 3).convert("YCbCr"), "TIFF"),
    ):
        np.testing.assert_array_equal(read_mask(encode(image, kind)), mask)


def encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


PIPES = """
import sys
from pathlib import Path
from test_messy_sources import find
base = Path(sys.argv[1])
records, warnings = find(base / "scans", {"format": "dicom", "folders": {"tumor": "."}})
print([record.path for record in records], warnings)
records, _ = find(base / "images", {"masks": {"suffix": "_mask"}, "folders": {"tumor": "."}})
print([record.header_error for record in records])
"""


def test_a_named_pipe_is_not_opened(tmp_path: Path) -> None:
    """Opening it would wait for its writer for ever."""
    write_dicom(tmp_path / "scans" / "IM1", np.asarray(draw(1)).astype(np.int16))
    write_images(tmp_path / "images", "a.png")
    for name in ("scans/pipe", "images/a_mask.png"):
        os.mkfifo(tmp_path / name)
    path = os.pathsep.join(str(ROOT / folder) for folder in ("", "tests/collection", "tests/support"))
    done = subprocess.run(
        [sys.executable, "-c", PIPES, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}, capture_output=True,
        text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "['IM1'] ['.: 1 files are not DICOM files by their names, such as pipe']",
        "['its mask a_mask.png is not a file, or is a broken link']",
    ]


def test_a_mask_that_is_gone_is_a_bad_file(tmp_path: Path) -> None:
    write_images(tmp_path, "tumor/a.png", "tumor/a_mask.png")
    recipe = parse_recipe({"classes": ["notumor", "tumor"], "parts": [{"masks": {"suffix": "_mask"}}]}, "it")
    records, _ = find_records(recipe, tmp_path)
    (tmp_path / "tumor" / "a_mask.png").unlink()
    (tmp_path / "tumor" / "a_mask.png").symlink_to("absent")
    with worker_pool(1) as run:
        examined = examine_records(records, tmp_path, recipe, run, progress=lambda done, total: None)
    assert [entry["reason"] for entry in examined.bad] == [
        "its mask tumor/a_mask.png is not a file, or is a broken link"
    ]
