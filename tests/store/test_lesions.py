"""Boxes and masks of lesions follow the images through build, parts, staging, joining, and into the network's input."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import in_process
from pictures import add_lesion, draw, write_lgg
from PIL import Image

from brain_dist.augmentation.augment import Frames, no_augmentation
from brain_dist.building.build import build
from brain_dist.building.verify import verify
from brain_dist.collection.masks import encode_mask
from brain_dist.collection.recipes import parse_recipe, read_recipe
from brain_dist.config import DataConfig
from brain_dist.errors import Fault, UserError
from brain_dist.store.access import open_shards
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.store.join import join
from brain_dist.store.lesions import MASKS, masks_entry, read_lesions
from brain_dist.store.options import BuildOptions
from brain_dist.stream.batches import evaluation_batches

LGG = read_recipe(Path("tcga_lgg_slices"))
BOXES = {"file": "b.csv", "id": "id", "center_x": "x", "center_y": "y", "width": "w", "height": "h"}


def make(source: Path, out: Path, recipe=LGG, **options: object) -> Dataset:
    return build(source, out, recipe, BuildOptions(split="test", **options), workers=1, allow_missing=True).dataset


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lgg(tmp_path_factory.mktemp("lgg"), patients=4, slices=6)


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(source, tmp_path_factory.mktemp("built") / "lgg").root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark heads of several sizes off the centre, each with a white ellipse; the masks and a table have the truth."""
    root = tmp_path_factory.mktemp("pictures")
    for name in ("tumor", "truth"):
        (root / name).mkdir()
    lines = ["id,x,y,w,h"]
    for number in range(12):
        head, ellipse = add_lesion(draw(number, 180 + 7 * number), number)
        width, height, left, top = 260 + 31 * number, 400 - 11 * number, 17 * number % 60, 23 * number % 50
        canvas = np.zeros((height, width), np.uint8)
        mask = np.zeros((height, width), bool)
        side = head.width
        canvas[top : top + side, left : left + side] = np.asarray(head)
        mask[top : top + side, left : left + side] = ellipse
        Image.fromarray(canvas).save(root / "tumor" / f"{number}.{('png', 'jpg')[number % 2]}", quality=95)
        Image.fromarray(mask).save(root / "truth" / f"{number}.png")
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        right, bottom = columns[-1] + 1, rows[-1] + 1
        box = ((columns[0] + right) / 2 / width, (rows[0] + bottom) / 2 / height)
        lines.append(f"{number},{box[0]},{box[1]},{(right - columns[0]) / width},{(bottom - rows[0]) / height}")
    (root / "b.csv").write_text("\n".join(lines))
    return root


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The mask with more pixels on each side."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * pixels + 1,) * 2, np.uint8)) > 0


@pytest.mark.parametrize("truth", [{"masks": {"folder": "truth"}}, {"boxes": BOXES}], ids=["masks", "boxes"])
@pytest.mark.parametrize("max_side", [None, 150])
@pytest.mark.parametrize("head", [True, False])
def test_truth_is_where_the_network_sees_the_lesion(pictures, tmp_path, truth, max_side, head):
    """The white ellipse in the pixels that a network gets is where masks and boxes say that it is."""
    recipe = parse_recipe({"classes": ["notumor", "tumor"], "parts": [{"ignore": ["truth"], **truth}]}, "it")
    dataset = make(pictures, tmp_path / "out", recipe, max_side=max_side)
    assert max(dataset.columns["width"].max(), dataset.columns["height"].max()) == (max_side or 601)
    rows = dataset.rows("test")
    crops = no_augmentation(Frames.of(dataset.columns, head=head), rows).crop
    lesions = read_lesions(dataset, rows)
    for size in (64, 224):
        config = DataConfig(shards=str(dataset.root), size=size, head_crop=head, loader="opencv", threads=1)
        batch = next(evaluation_batches(config, dataset, rows, micro_batch=len(rows), device=torch.device("cpu")))
        assert batch.row.tolist() == rows.tolist()
        for image, crop, lesion in zip(batch.image[:, 0].numpy(), crops, lesions, strict=True):
            stored = math.ceil(max(1, size / crop[2:].min()))  # a stored pixel in pixels of the input
            white = image > 183  # halfway between the brain's brightest gray and white
            rows_white, columns_white = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
            edges = [columns_white[0], rows_white[0], columns_white[-1] + 1, rows_white[-1] + 1]
            (box,) = lesion.input_boxes(size, crop)
            np.testing.assert_allclose(box, edges, atol=stored + 0.5)
            if lesion.mask is None:
                white[edges[1] : edges[3], edges[0] : edges[2]] = True
            drawn = lesion.on_input(size, crop)
            assert not (drawn & ~grown(white, stored)).any()
            assert not (white & ~grown(drawn, stored)).any()


def test_the_index_has_boxes_and_areas_of_the_masks(source, built):
    dataset = open_dataset(built)
    lesions = read_lesions(dataset, range(len(dataset)))
    for row, lesion in enumerate(lesions):
        assert lesion is not None
        path = source / dataset.columns["source"][row]
        expected = np.asarray(Image.open(path.with_name(f"{path.stem}_mask.tif"))) > 0
        np.testing.assert_array_equal(lesion.mask, expected)
        attributes = json.loads(dataset.columns["attributes"][row])
        assert attributes["lesion_area"] == pytest.approx(expected.mean(), abs=1e-9)
        assert (len(lesion.boxes) == 1) == expected.any() == (dataset.columns["label"][row] == 1)
        crop = (0, 0, *expected.shape[::-1])
        np.testing.assert_array_equal(lesion.on_input(96, crop), expected)
        assert not lesion.on_input(16, (0, 0, 1, 1)).any(), "no lesion in that corner"
    table = pq.read_table(built / MASKS)
    assert table["key"].to_pylist() == dataset.columns["key"].tolist()
    assert dataset.manifest.masks.samples == len(dataset) == 24
    assert "masks" not in json.loads((built / "manifest.json").read_text())["recipe"]  # only in its part


def test_masks_have_the_same_bytes_from_parts_and_any_number_of_workers(source, built, tmp_path):
    options = (
        "--recipe",
        "tcga_lgg_slices",
        "--source",
        str(source),
        "--split",
        "test",
        "--out",
        str(tmp_path / "out"),
    )
    for part in ("1", "0"):
        in_process("shard", "build", *options, "--parts", "2", "--part", part, "--workers", "1")
    done = in_process("shard", "build", *options, "--parts", "2", "--workers", "1")
    assert "masks: 24 images have one" in done.out
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in built.iterdir()
    }
    again = build(source, tmp_path / "two", LGG, BuildOptions(split="test"), workers=2).dataset
    assert again.version == open_dataset(built).version
    assert not build(source, tmp_path / "two", LGG, BuildOptions(split="test"), workers=1).fresh


def test_a_changed_mask_is_another_source(source, built, tmp_path):
    copy = Path(shutil.copytree(source, tmp_path / "source"))
    out = Path(shutil.copytree(built, tmp_path / "out"))
    mask = next(copy.glob("*/*/*_2_mask.tif"))
    pixels = np.asarray(Image.open(mask)).copy()
    rows, columns = np.nonzero(pixels)
    pixels[rows[len(rows) // 2], columns[len(rows) // 2]] = 0
    Image.fromarray(pixels).save(mask)
    with pytest.raises(UserError, match="contains shards built from another list of source files"):
        make(copy, out)


def test_images_without_masks_have_no_file_of_them(tmp_path):
    (tmp_path / "source" / "tumor").mkdir(parents=True)
    draw(1).save(tmp_path / "source" / "tumor" / "1.png")
    recipe = parse_recipe({"classes": ["notumor", "tumor"], "parts": [{"masks": {"folder": "absent"}}]}, "it")
    dataset = make(tmp_path / "source", tmp_path / "out", recipe)
    assert read_lesions(dataset, [0]) == [None]
    assert not (dataset.root / MASKS).exists()
    assert "masks" not in json.loads((dataset.root / "manifest.json").read_text())
    assert verify(dataset.root) == []


def test_phantoms_have_the_masks_that_they_were_drawn_with(phantom_shards):
    dataset = open_dataset(phantom_shards)
    lesions = read_lesions(dataset, range(len(dataset)))
    for row, lesion in enumerate(lesions):
        if dataset.classes[dataset.columns["label"][row]] == "notumor":
            assert lesion is None
            continue
        name = Path(dataset.columns["source"][row]).stem
        expected = np.asarray(Image.open(phantom_shards.parent / "images" / "masks" / f"{name}.png")) > 0
        np.testing.assert_array_equal(lesion.mask, expected)
    assert verify(phantom_shards) == []


def test_a_staged_copy_has_the_masks(built, tmp_path):
    dataset = open_shards(str(built), str(tmp_path / "cache"))
    assert dataset.root.parent == tmp_path / "cache"
    assert (dataset.root / MASKS).read_bytes() == (built / MASKS).read_bytes()
    assert verify(dataset.root) == []
    (dataset.root / MASKS).unlink()
    again = open_shards(str(built), str(tmp_path / "cache"))
    assert read_lesions(again, [0])[0].mask is not None


def test_a_joined_folder_finds_masks_in_its_sources(source, built, tmp_path):
    other = make(source, tmp_path / "other", replace(LGG, name="other"), seed=5).root
    both = join([built, other], tmp_path / "both", leave_out=None, workers=1)
    assert len(both) == 48
    assert any("." in key for key in both.columns["key"])
    alone = [open_dataset(folder) for folder in (built, other)]
    expected = {
        (number, part.columns["source"][row]): lesion.mask
        for number, part in enumerate(alone)
        for row, lesion in enumerate(read_lesions(part, range(len(part))))
    }
    for row, lesion in enumerate(read_lesions(both, range(len(both)))):
        number = int(both.columns["shard"][row][0])
        np.testing.assert_array_equal(lesion.mask, expected[number, both.columns["source"][row]])
    assert verify(both.root) == []


def replace_masks(folder: Path, change) -> None:
    """Change the masks, key → PNG, and describe the new file in the manifest."""
    table = pq.read_table(folder / MASKS)
    masks = dict(zip(table["key"].to_pylist(), table["png"].to_pylist(), strict=True))
    change(masks)
    data, entry = masks_entry(masks)
    (folder / MASKS).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["masks"] |= {"sha256": entry.sha256, "size": entry.size}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_verify_and_readers_find_damaged_masks(built, tmp_path):
    folder = Path(shutil.copytree(built, tmp_path / "out"))
    key = open_dataset(folder).columns["key"][0]
    data = bytearray((folder / MASKS).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / MASKS).write_bytes(data)
    (problem,) = verify(folder)
    assert problem.startswith(
        "masks.parquet: not the masks that the manifest describes (sha256 differs); copy or build"
    )
    with pytest.raises(Fault, match=r"masks\.parquet: not the masks that the manifest describes"):
        read_lesions(open_dataset(folder), [0])
    shutil.copy(built / MASKS, folder / MASKS)
    replace_masks(folder, lambda masks: masks.update({key: encode_mask(np.ones((96, 96), bool))}))
    assert verify(folder) == [f"index.parquet: boxes or lesion_area of {key} are not those of its mask"]
    replace_masks(folder, lambda masks: masks.update({key: encode_mask(np.ones((50, 96), bool))}))
    assert verify(folder) == [f"masks.parquet: the mask of {key} has another size than its image"]
    with pytest.raises(Fault, match=f"the mask of {key} has another size"):
        read_lesions(open_dataset(folder), [0])
    replace_masks(folder, lambda masks: masks.update({key: b"png"}))
    assert verify(folder) == [f"masks.parquet: the mask of {key} is not an image"]
    replace_masks(folder, lambda masks: masks.update({"stranger": masks.pop(key)}))
    assert verify(folder) == [
        f"masks.parquet: no mask of {key}",
        "masks.parquet: a mask of stranger, which has none by the index.parquet",
    ]
    with pytest.raises(Fault, match=f"it has no mask of {key}"):
        read_lesions(open_dataset(folder), [0])
    (folder / MASKS).unlink()
    (problem,) = verify(folder)
    assert problem.startswith("masks.parquet: cannot be read (No such file or directory); copy or build")


def test_lgg_patients_on_kaggle(real_data, tmp_path):
    if not (real_data / "tcga_lgg").is_dir():
        pytest.skip("no tcga_lgg there")
    few = tmp_path / "few" / "kaggle_3m"
    few.mkdir(parents=True)
    for name in sorted(path.name for path in (real_data / "tcga_lgg" / "kaggle_3m").iterdir())[:3]:
        (few / name).symlink_to(real_data / "tcga_lgg" / "kaggle_3m" / name)
    result = build(tmp_path / "few", tmp_path / "out", LGG, BuildOptions(split="test"), workers=2, allow_missing=True)
    columns = result.dataset.columns
    assert sorted(set(columns["patient"])) == ["TCGA_CS_4941", "TCGA_CS_4942", "TCGA_CS_5393"]
    masks = {path for path in few.glob("*/*_mask.tif") if np.asarray(Image.open(path)).any()}
    assert int((columns["label"] == 1).sum()) == len(masks)
    assert set(columns["mode"]) == {"RGB"}
    assert verify(result.dataset.root) == []
    assert not any("repeats channel" in warning for warning in result.warnings)
    assert (
        hashlib.sha256((result.dataset.root / MASKS).read_bytes()).hexdigest() == result.dataset.manifest.masks.sha256
    )
