"""Transplants: who gives what to whom, and the pixels and labels that the network gets."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import TINY, in_process, launch, losses
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import add_lesion, draw, write_lgg
from PIL import Image

from brain_dist.augmentation.blending import blend, soft_box, soft_mask
from brain_dist.augmentation.composing import compose
from brain_dist.augmentation.transplants import Kind, Transplant, Transplants
from brain_dist.config import AugmentConfig, DataConfig
from brain_dist.errors import UserError
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.store.reader import ShardReader
from brain_dist.stream.batch import Batch, Job
from brain_dist.stream.batches import open_loader, training_jobs
from brain_dist.stream.decoding import decode_reduced
from brain_dist.stream.plan import TrainingPlan

STILL = AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0, rotate=0, brightness=0, contrast=0)
MIXED = replace(STILL, scale=(0.5, 1.0), tumour_erased=0.4, tumour_pasted=0.5, tissue_pasted=0.5)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two collections: ``cheng`` has tumours, white ellipses, with boxes; ``web`` tumour-free heads, some in RGB."""
    base = tmp_path_factory.mktemp("transplants")
    for name in ("tumor", "notumor"):
        (base / "images" / name).mkdir(parents=True)
    lines = ["id,x,y,w,h"]
    for number in range(24):
        image, mask = add_lesion(draw(number, 200 + 3 * number), number)
        image.save(base / "images" / "tumor" / f"t{number:02}.jpg", quality=95)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        height, width = mask.shape
        box = (columns[0] + columns[-1] + 1) / 2 / width, (rows[0] + rows[-1] + 1) / 2 / height
        lines.append(f"t{number:02},{box[0]},{box[1]},{len(columns) / width},{len(rows) / height}")
        healthy = Image.fromarray(np.minimum(np.asarray(draw(500 + number, 130 + 9 * number)) // 2, 110))
        mode, suffix = (("L", "png"), ("RGB", "jpg"))[number % 2]
        healthy.convert(mode).save(base / "images" / "notumor" / f"n{number:02}.{suffix}")
    (base / "images" / "boxes.csv").write_text("\n".join(lines))
    boxes = {"file": "boxes.csv", "id": "id", "center_x": "x", "center_y": "y", "width": "w", "height": "h"}
    parts = [
        {"dataset": "cheng", "folders": {"tumor": ["tumor"]}, "boxes": boxes},
        {"dataset": "web", "folders": {"notumor": ["notumor"]}},
    ]
    recipe = {"name": "both", "classes": ["notumor", "tumor"], "parts": parts}
    (base / "recipe.yaml").write_text(json.dumps(recipe))
    options = ["--recipe", str(base / "recipe.yaml"), "--source", str(base / "images"), "--out", str(base / "shards")]
    in_process("shard", "build", *options, "--workers", "1", "--fractions", "0.8,0.1,0.1")
    return base / "shards"


@pytest.fixture(scope="module")
def dataset(shards: Path) -> Dataset:
    return open_dataset(shards)


def jobs(
    dataset: Dataset, augment: AugmentConfig, config: DataConfig | None = None, *,
    rank: int = 0, ranks: int = 1, first_step: int = 0,
) -> Iterator[Job]:  # fmt: skip
    """Three epochs in steps of 12."""
    rows = dataset.rows("train")
    plan = TrainingPlan(
        rows=rows, shard=rows * 0, label=dataset.columns["label"][rows].astype(np.int64), seed=5, epochs=3,
        global_batch=12, micro_batch=12 // ranks, balance="sampling",
    )  # fmt: skip
    return training_jobs(dataset, config or DataConfig(), augment, plan.micro_batches(rank, ranks, first_step), seed=5)


def drawn(all_jobs: Iterator[Job]) -> dict[tuple[int, int], tuple]:
    """(epoch, visit) → what is done to it."""
    result: dict[tuple[int, int], tuple] = {}
    for job in all_jobs:
        for place, visit in enumerate(job.micro.visit.tolist()):
            each = job.transplants.get(place)
            result[job.micro.epoch, visit] = () if each is None else described(each)
    return result


def described(each: Transplant) -> tuple:
    places = each.places.round(12).tobytes()
    return each.kind, each.label, each.image.row, each.donor.row, places, each.flip, each.angle, each.scale


@settings(max_examples=8, deadline=None)
@given(ranks=st.sampled_from([2, 3, 4]), first_step=st.integers(0, 8))
def test_transplants_are_the_same_on_any_number_of_ranks_and_from_any_step(
    dataset: Dataset, ranks: int, first_step: int
) -> None:
    whole = drawn(jobs(dataset, MIXED, first_step=first_step))
    parts: dict[tuple[int, int], tuple] = {}
    for rank in range(ranks):
        parts |= drawn(jobs(dataset, MIXED, rank=rank, ranks=ranks, first_step=first_step))
    assert parts == whole
    everything = drawn(jobs(dataset, MIXED))
    assert {visit: everything[visit] for visit in whole} == whole


def test_donors_are_training_images_of_the_other_collection_and_labels_follow(dataset: Dataset) -> None:
    label, collection = dataset.columns["label"], dataset.columns["dataset"]
    train = set(dataset.rows("train").tolist())
    free, tumour = dataset.classes.index("notumor"), dataset.classes.index("tumor")
    counts: Counter[tuple[int, Kind | None]] = Counter()
    for job in jobs(dataset, MIXED):
        for place, row in enumerate(job.micro.rows.tolist()):
            each = job.transplants.get(place)
            counts[int(label[row]), None if each is None else each.kind] += 1
            if each is not None:
                assert each.image.row == row
                assert each.donor.row in train
                assert (collection[each.donor.row] != collection[row]) != (each.kind is Kind.ERASED)
                expected = {Kind.ERASED: free, Kind.TUMOUR: tumour, Kind.TISSUE: label[row]}
                assert each.label == expected[each.kind]
    assert set(counts) == {
        *((tumour, kind) for kind in (None, Kind.ERASED, Kind.TISSUE)),
        *((free, kind) for kind in (None, Kind.TUMOUR, Kind.TISSUE)),
    }
    for first, share in (((tumour, Kind.ERASED), 0.4), ((free, Kind.TUMOUR), 0.5)):
        total = sum(count for key, count in counts.items() if key[0] == first[0])
        assert counts[first] / total == pytest.approx(share, abs=0.2)  # of about 60 visits


def test_in_one_collection_donors_are_other_patients(tmp_path: Path) -> None:
    write_lgg(tmp_path / "source", patients=5, slices=6)
    options = ["--recipe", "tcga_lgg_slices", "--source", str(tmp_path / "source"), "--out", str(tmp_path / "out")]
    in_process("shard", "build", *options, "--workers", "1", "--allow-missing", "--fractions", "0.8,0,0.2")
    dataset = open_dataset(tmp_path / "out")
    group = dataset.columns["group"]
    each = [each for job in jobs(dataset, MIXED) for each in job.transplants.values()]
    assert all((group[one.image.row] != group[one.donor.row]) != (one.kind is Kind.ERASED) for one in each)
    assert {one.kind for one in each} == set(Kind)
    assert all(one.region.mask is not None for one in each), "masks are used where they are known"


def loaded(dataset: Dataset, augment: AugmentConfig, loader: str, color: str, device: torch.device) -> list[Batch]:
    config = DataConfig(size=64, loader=loader, color=color, head_crop=True, threads=2)  # type: ignore[arg-type]
    some = itertools.islice(jobs(dataset, augment, config), 5)
    batches = open_loader(config, dataset, some, augmented=True, micro_batch=12, device=device)
    return [replace(batch, image=batch.image.cpu(), label=batch.label.cpu()) for batch in batches]


@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_all_loaders_make_the_same_pixels_and_labels(dataset: Dataset, color: str, device: torch.device) -> None:
    mixed = replace(MIXED, rotate=20, flip=0.5)
    of = {loader: loaded(dataset, mixed, loader, color, device) for loader in ("opencv", "dali", "torch")}
    stored = torch.from_numpy(dataset.columns["label"].astype(np.int64))
    for first, second in itertools.combinations(of, 2):
        for a, b in zip(of[first], of[second], strict=True):
            assert torch.equal(a.label, b.label)
            difference = (a.image.float() - b.image.float()).abs()
            assert difference.mean() < 0.3
            assert torch.quantile(difference, 0.99) <= 2
    assert any(not torch.equal(batch.label, stored[batch.row.cpu()]) for batch in of["opencv"])


def composed(dataset: Dataset, kind: Kind, count: int = 12) -> Iterator[tuple[Transplant, np.ndarray, np.ndarray]]:
    """Transplants of a kind, the image before and after, float [h, w]."""
    of = {Kind.ERASED: "tumour_erased", Kind.TUMOUR: "tumour_pasted", Kind.TISSUE: "tissue_pasted"}
    augment = replace(STILL, **{of[kind]: 1.0})  # type: ignore[arg-type]
    reader = ShardReader(dataset)

    def decode(row: int, reduction: int) -> np.ndarray:
        image = decode_reduced(reader.read(row), reduction, color=False)
        assert image is not None
        return image

    every = (each for job in jobs(dataset, augment) for each in job.transplants.values())
    for each in itertools.islice(every, count):
        assert each.kind is kind
        after = cv2.imdecode(np.frombuffer(compose(each, 1, decode), np.uint8), cv2.IMREAD_UNCHANGED)
        assert after is not None
        yield each, decode(each.image.row, 1).astype(float), after.astype(float)


def test_an_erased_tumour_is_gone_and_the_rest_of_the_image_stays(dataset: Dataset) -> None:
    for each, before, after in composed(dataset, Kind.ERASED):
        assert (before > 180).sum() > 50, "the tumour is white"
        assert (after > 180).sum() == 0
        left, top, right, bottom = each.image.lesions[0].box
        y, x = np.indices(before.shape)
        far = (np.abs(x - (left + right) / 2) > right - left) | (np.abs(y - (top + bottom) / 2) > bottom - top)
        np.testing.assert_array_equal(after[far], before[far])


def test_a_pasted_tumour_is_there_inside_the_head(dataset: Dataset) -> None:
    for each, before, after in composed(dataset, Kind.TUMOUR):
        bright = np.argwhere(after - before > 15)
        assert len(bright) > 30
        x, y, width, height = each.image.head
        centre = bright.mean(axis=0)[::-1]
        assert 0.15 < (centre[0] - x) / width < 0.85
        assert 0.15 < (centre[1] - y) / height < 0.85


def test_pasted_tissue_changes_an_image_but_neither_adds_nor_covers_a_tumour(dataset: Dataset) -> None:
    changed = 0
    for each, before, after in composed(dataset, Kind.TISSUE, 24):
        changed += bool((np.abs(before - after) > 5).sum() > 30)
        if each.image.lesions:
            white = before > 200
            assert after[white].min() > 150
        assert (after[before <= 130] > 180).sum() < 10, "a tumour has more"
    assert changed >= 12


def test_a_patch_gets_the_brightness_of_what_surrounds_it() -> None:
    rng = np.random.default_rng(0)
    target = (100 + 20 * np.linspace(-1, 1, 61)[None, :, None] + rng.normal(0, 2, (61, 61, 1))).astype(np.float32)
    patch = (180 + rng.normal(0, 2, (61, 61, 1))).astype(np.float32)
    shape = soft_box((15.0, 15.0), np.eye(2), 2.0, 6.0)
    shape = np.pad(shape, (61 - shape.shape[0]) // 2)
    result = blend(target, patch, shape, np.ones_like(shape), gain=1.0, span=160.0)
    assert np.abs(result - target).max() < 18, "also the slope of the brightness goes through"
    tumour = patch.copy()
    tumour[25:36, 25:36] += 50
    assert blend(target, tumour, shape, np.ones_like(shape), gain=1.0, span=160.0)[30, 30, 0] - target[
        30, 30, 0
    ] == pytest.approx(50, abs=12)


def test_soft_shapes_cover_what_they_stand_for() -> None:
    turn = 0.5 * np.array([[0.0, -1.0], [1.0, 0.0]])  # half of the size, a quarter turn
    box = soft_box((20.0, 8.0), turn, 2.0, 3.0)
    middle = box.shape[0] // 2
    assert box[middle, middle + 3] == 1
    assert box[middle + 9, middle] == 1
    assert 0 < box[middle, middle + 5] < 1
    assert box[middle, middle + 8] == 0
    mask = np.zeros((16, 40), bool)
    mask[4:12, 10:30] = True
    soft = soft_mask(mask, turn, 0.0, 2.0)
    assert (soft == 1).sum() == pytest.approx(mask.sum() / 4, rel=0.25)
    assert soft_mask(np.ones((1, 1), bool), 0.1 * np.eye(2), 0.0, 2.0).max() == 1


def test_shards_that_lack_what_a_setting_needs(dataset: Dataset) -> None:
    def refused(changed: dict, **setting: float) -> str:
        columns = {**dataset.columns, **changed}
        with pytest.raises(UserError) as error:
            Transplants(replace(dataset, columns=columns), replace(STILL, **setting))  # type: ignore[arg-type]
        return str(error.value)

    blank = np.array(["{}"] * len(dataset), dtype=object)
    message = refused({"attributes": blank}, tumour_pasted=0.4)
    assert message.startswith("augment.tumour_pasted=0.4 needs training images whose tumours are known")
    ones = np.ones_like(dataset.columns["label"])
    assert "needs tumour-free training images" in refused({"label": ones}, tumour_pasted=0.4)
    other = replace(dataset, manifest=replace(dataset.manifest, classes=["a", "b"]))
    with pytest.raises(UserError, match="needs the class notumor"):
        Transplants(other, replace(STILL, tissue_pasted=0.1))


@pytest.mark.slow
def test_a_training_with_transplants_is_the_same_on_two_ranks(shards: Path, tmp_path: Path) -> None:
    common = [
        *TINY, "--data.shards", str(shards), "--run.dir", str(tmp_path), "--run.device", "cpu", "--train.epochs", "2",
        "--train.precision", "fp32", "--train.zero_stage", "0", "--train.global_batch", "12",
        "--train.balance", "collections", "--augment.tumour_erased", "0.4", "--augment.tumour_pasted", "0.4",
        "--augment.tissue_pasted", "0.4", "--augment.curves", "0.5", "--augment.noise", "0.5", "--data.stretch", "true",
    ]  # fmt: skip
    launch(1, "train", *common, "--run.name", "one", "--train.micro_batch", "12")
    launch(2, "train", *common, "--run.name", "two", "--train.micro_batch", "6")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
