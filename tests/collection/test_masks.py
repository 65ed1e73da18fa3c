"""Masks and boxes of lesions: which file is whose, what they say, and one channel of an image of several."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np
import pytest
from pictures import add_lesion, draw, write_lgg
from PIL import Image
from scans import write_mat

from brain_dist.collection.decoding import BadImage
from brain_dist.collection.discovery import find_records
from brain_dist.collection.examination import channel_warnings, examine_records
from brain_dist.collection.masks import encode_mask, fit_mask, mask_attributes, read_mask
from brain_dist.collection.pixels import examine
from brain_dist.collection.recipes import Recipe, parse_recipe, read_recipe
from brain_dist.collection.records import Record
from brain_dist.common.workers import worker_pool
from brain_dist.errors import UserError

ELLIPSE = add_lesion(draw(1), 1)[1]


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def find(source: Path, part: dict[str, object], classes: tuple[str, ...] = ("notumor", "tumor")):
    recipe = parse_recipe({"classes": list(classes), "parts": [part]}, "it")
    return find_records(recipe, source)


def measure(source: Path, recipe: Recipe, records: list[Record]):
    with worker_pool(1) as run:
        return examine_records(records, source, recipe, run, progress=lambda done, total: None)


def test_a_mask_is_what_is_not_0_in_any_encoding() -> None:
    gray = Image.fromarray(ELLIPSE.astype(np.uint8))  # values 0 and 1
    palette = Image.fromarray(ELLIPSE.astype(np.uint8) * 3, "P")
    palette.putpalette([0] * 9 + [255, 0, 0])
    rgba = Image.merge("RGBA", [gray, gray.point(lambda value: 0), gray, Image.new("L", gray.size, 255)])
    white = Image.fromarray(ELLIPSE.astype(np.uint8) * 255)
    wide = Image.fromarray(ELLIPSE.astype(np.uint16) * 4000)
    for image in (gray, palette, rgba, white, white.convert("1"), white.convert("RGB"), wide):
        np.testing.assert_array_equal(read_mask(encode(image, "PNG")), ELLIPSE)
    np.testing.assert_array_equal(read_mask(encode_mask(ELLIPSE)), ELLIPSE)
    jpeg = read_mask(encode(white, "JPEG", quality=90))  # has small values instead of 0
    assert (jpeg != ELLIPSE).mean() < 0.002
    for data in (b"", encode(gray, "PNG")[:60]):
        with pytest.raises(BadImage):
            read_mask(data)


def test_a_resized_mask_has_the_pixels_that_are_at_least_half_lesion() -> None:
    mask = np.zeros((8, 8), bool)
    mask[2:5, 4:8] = True
    expected = np.zeros((4, 4), bool)
    expected[1:3, 2:4] = True  # its second row is half covered
    np.testing.assert_array_equal(fit_mask(mask, 4, 4), expected)
    np.testing.assert_array_equal(fit_mask(mask, 2, 2, (4, 2, 6, 4)), np.ones((2, 2), bool))
    np.testing.assert_array_equal(fit_mask(expected, 8, 8)[2:6, 4:8], np.ones((4, 4), bool))
    speck = np.zeros((512, 512), bool)
    speck[100, 301] = True
    assert np.argwhere(fit_mask(speck, 16, 16)).tolist() == [[3, 9]]
    assert not fit_mask(np.zeros((512, 512), bool), 16, 16).any()


def test_each_connected_region_of_a_mask_has_a_box() -> None:
    mask = np.zeros((50, 100), bool)
    mask[10:12, 20:30] = True
    mask[20:40, 50:60] = True
    mask[40, 60] = True  # touches the second one at a corner
    assert mask_attributes(mask) == {"boxes": [[0.5, 0.4, 0.61, 0.82], [0.2, 0.2, 0.3, 0.24]], "lesion_area": 0.0442}
    assert mask_attributes(np.zeros((9, 9), bool)) == {"boxes": [], "lesion_area": 0.0}


def test_masks_beside_the_images_give_their_classes(tmp_path: Path) -> None:
    write_lgg(tmp_path, patients=2, slices=4)
    records, warnings = find_records(read_recipe(Path("tcga_lgg")), tmp_path)
    names = [record.path.rpartition("/")[2] for record in records]
    slices = ("4900_19961000_2", "4900_19961000_4", "4901_19961001_2", "4901_19961001_4")
    assert names == [f"TCGA_CS_{name}.tif" for name in slices]
    assert [record.label for record in records] == [1] * 4
    assert [record.patient for record in records] == ["TCGA_CS_4900"] * 2 + ["TCGA_CS_4901"] * 2
    assert [record.attributes for record in records] == [{"slice": "2"}, {"slice": "4"}] * 2
    assert warnings == [
        "kaggle_3m: 1 files are not images by their names, such as kaggle_3m/data.csv",
        "kaggle_3m: 4 images with an empty mask are left out: a slice without a tumour is not a slice of a healthy"
        " person",
        "tcga_lgg: tumor has 4 images, the recipe expects 1373",
    ]
    records, warnings = find_records(read_recipe(Path("tcga_lgg_slices")), tmp_path)
    assert [record.label for record in records] == [0, 1, 0, 1] * 2
    assert any("4 images with an empty mask are labelled notumor: a slice without" in text for text in warnings)
    archive = tmp_path / "archive"
    write_lgg(archive / "inside", patients=1, slices=1)
    with pytest.raises(UserError, match=f"the folder kaggle_3m is missing.*use --source {archive / 'inside'}$"):
        find_records(read_recipe(Path("tcga_lgg")), archive)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"expected in --source: kaggle_3m/… with masks …_mask\.\*$"):
        find_records(read_recipe(Path("tcga_lgg")), tmp_path / "empty")


def test_images_whose_mask_is_missing_or_damaged(tmp_path: Path) -> None:
    write_lgg(tmp_path, patients=1, slices=4)
    recipe = read_recipe(Path("tcga_lgg_slices"))
    (mask,) = tmp_path.glob("*/*/*_3_mask.tif")
    mask.write_bytes(mask.read_bytes()[:300])
    records, _ = find_records(recipe, tmp_path)
    assert [record.label for record in records] == [0, 1, -1, 1]
    examined = measure(tmp_path, recipe, records)
    assert [entry["source"][-6:] for entry in examined.bad] == ["_3.tif"]
    assert f"its mask kaggle_3m/{mask.parent.name}/{mask.name} cannot be decoded" in examined.bad[0]["reason"]
    mask.unlink()
    with pytest.raises(
        UserError, match=r"_3\.tif has no mask kaggle_3m/.*/…_mask, and the recipe takes its class from"
    ):
        find_records(recipe, tmp_path)
    for path in tmp_path.glob("*/*/*0_[24]*.tif"):
        path.unlink()
    part = {"root": "kaggle_3m", "masks": {"suffix": "_mask", "lesion": "tumor"}, "exclude": "_3"}
    with pytest.raises(UserError, match=r"the masks of all 1 images are empty; check masks\.suffix"):
        find(tmp_path, part)


def test_masks_in_a_folder_and_of_another_shape(tmp_path: Path) -> None:
    for folder in ("tumor", "notumor", "truth"):
        (tmp_path / folder).mkdir()
    image, mask = add_lesion(draw(1), 1)
    image.save(tmp_path / "tumor" / "a.jpg")
    image.save(tmp_path / "tumor" / "b.jpg")
    image.save(tmp_path / "notumor" / "c.jpg")
    Image.fromarray(mask).save(tmp_path / "truth" / "a-seg.png")
    Image.fromarray(mask[:40]).save(tmp_path / "truth" / "b-seg.png")
    part = {"masks": {"folder": "truth", "suffix": "-seg"}, "ignore": ["truth"]}
    recipe = parse_recipe({"classes": ["notumor", "tumor"], "parts": [part]}, "it")
    records, warnings = find_records(recipe, tmp_path)
    assert warnings == []
    assert [record.mask for record in records] == [None, "truth/a-seg.png", "truth/b-seg.png"]
    examined = measure(tmp_path, recipe, records)
    assert examined.bad == [
        {"source": "tumor/b.jpg", "reason": "its mask has 96 x 40 pixels, another shape than the image"}
    ]
    assert [image.attributes for image in examined.images] == [{}, mask_attributes(mask)]


def test_matlab_files_contain_their_masks(tmp_path: Path) -> None:
    image, mask = add_lesion(draw(1), 1)
    write_mat(tmp_path / "1.mat", np.asarray(image))
    write_mat(tmp_path / "2.mat", np.asarray(image))
    for name, change in (("1", mask), ("2", None)):
        with h5py.File(tmp_path / f"{name}.mat", "r+") as file:
            del file["cjdata/tumorMask"]
            if change is not None:
                file["cjdata/tumorMask"] = change.astype(np.uint8).T
    recipe = parse_recipe({"parts": [{"format": "mat"}]}, "it")
    records, _ = find_records(recipe, tmp_path)
    assert [image.attributes for image in measure(tmp_path, recipe, records).images] == [mask_attributes(mask), {}]


def test_tables_and_file_names_cannot_set_what_masks_say(tmp_path: Path) -> None:
    draw(1).save(tmp_path / "1.png")
    (tmp_path / "t.csv").write_text("path,label,boxes\n1.png,tumor,3\n")
    with pytest.raises(UserError, match="line 2: a column boxes would be taken for what masks say"):
        find(tmp_path, {"table": {"file": "t.csv", "path": "path", "label": "label"}})
    with pytest.raises(UserError, match="attributes_from_name: lesion_area is what masks say"):
        find(tmp_path, {"attributes_from_name": r"(?P<lesion_area>\d)"})


BOXES = {"file": "b.csv", "id": "id", "center_x": "x", "center_y": "y", "width": "w", "height": "h"}


def test_boxes_come_from_the_table(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        (tmp_path / "tumor").mkdir(exist_ok=True)
        draw(int(name)).save(tmp_path / "tumor" / f"{name}.png")
    part: dict[str, object] = {"boxes": BOXES}

    def table(*lines: str) -> None:
        (tmp_path / "b.csv").write_text("\n".join(["id,class,x,y,w,h", *lines]))

    table("1,g,0.5,0.4,0.2,0.1", "1,g,0.1,0.1,0.3,0.1", "tumor/3.png,g,.3,.3,.1,.1", "99,g,.3,.3,.1,.1")
    assert [record.attributes for record in find(tmp_path, part)[0]] == [
        {"boxes": [[0.4, 0.35, 0.6, 0.45], [0.0, 0.05, 0.25, 0.15]]},  # the second one ends at the image's edge
        {},
        {"boxes": [[0.25, 0.25, 0.35, 0.35]]},
    ]
    for wrong in ("5,.3,.1,.1", ".5,.3,0,.1", ".5,.3,,.1", ".5,.3,nan,.1", "150,90,40,30"):
        table("1,g,.5,.5,.1,.1", f"2,g,{wrong}")
        with pytest.raises(
            UserError, match=r"b\.csv, line 3: x '.*is not the centre and the size of a box as fractions"
        ):
            find(tmp_path, part)
    table("image1,g,.5,.5,.1,.1")
    with pytest.raises(UserError, match=r"has boxes, but of none of the images: .* such as tumor/1\.png"):
        find(tmp_path, part)
    (tmp_path / "b.csv").unlink()
    with pytest.raises(UserError, match=r"the table of boxes .*b\.csv cannot be read"):
        find(tmp_path, part)
    records, warnings = find(tmp_path, {"boxes": {**BOXES, "optional": True}})
    assert [record.attributes for record in records] == [{}, {}, {}]
    assert warnings == []


def test_the_chosen_channel_is_stored() -> None:
    channels = [draw(number) for number in range(3)]
    tiff = encode(Image.merge("RGB", channels), "TIFF")
    for number, channel in enumerate(channels):
        image = examine(tiff, channel=number)
        assert image.payload is not None
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image.payload))), np.asarray(channel))
        assert (image.mode, image.ext, image.attributes) == ("RGB", "png", {})
    jpeg = encode(Image.merge("RGB", channels), "JPEG", quality=98, subsampling=0)
    stored = np.asarray(Image.open(io.BytesIO(examine(jpeg, channel=1).payload or b"")))
    np.testing.assert_array_equal(stored, np.asarray(Image.open(io.BytesIO(jpeg)))[:, :, 1])
    gray = encode(channels[0], "PNG")
    assert examine(gray, channel=0).pixel_hash == examine(gray).pixel_hash
    with pytest.raises(BadImage, match=r"has the channels L \(mode L\), but the recipe chooses channel 2"):
        examine(gray, channel=2)
    with pytest.raises(BadImage, match="mode P"):
        examine(encode(channels[0].convert("P"), "PNG"), channel=0)


def test_patients_whose_channel_repeats_another_one_are_named(tmp_path: Path) -> None:
    write_lgg(tmp_path, patients=5, slices=4, repeated=2)
    for name, expected in (
        ("tcga_lgg", "channel 2 repeats channel 1"),
        ("tcga_lgg_flair", "channel 1 repeats channel 2"),
    ):
        recipe = read_recipe(Path(name))
        records, _ = find_records(recipe, tmp_path)
        examined = measure(tmp_path, recipe, records)
        other = 1 if name == "tcga_lgg" else 2
        assert [image.attributes.get("same_channels") for image in examined.images] == [None] * 6 + [[other]] * 4
        (warning,) = channel_warnings(examined, recipe)
        assert warning.startswith(f"tcga_lgg: {expected} in all images of 2 patients")
        assert "TCGA_CS_4903, TCGA_CS_4904; " in warning
    (first,) = tmp_path.glob("*/TCGA_CS_4900*/*_2.tif")  # a patient with one such slice is not named
    channels = Image.open(first).split()
    Image.merge("RGB", (channels[0], channels[1], channels[1])).save(first)
    recipe = read_recipe(Path("tcga_lgg"))
    (warning,) = channel_warnings(measure(tmp_path, recipe, find_records(recipe, tmp_path)[0]), recipe)
    assert "2 patients" in warning
    black = encode(Image.merge("RGB", [draw(1), *[Image.new("L", (96, 96))] * 2]), "TIFF")
    assert examine(black, channel=2).attributes == {}, "two black channels are no sequence"
