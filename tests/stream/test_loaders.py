"""Loaders: OpenCV, DALI and the torch reference make the same pixels from the same plan, and report damaged shards."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import shutil
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import in_process
from pictures import CLASSES, draw
from PIL.PngImagePlugin import PngInfo

from brain_dist.config import AugmentConfig, Config, DataConfig
from brain_dist.errors import Fault
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.store.reader import ShardReader
from brain_dist.stream import dali_loader
from brain_dist.stream.batch import Batch, Job
from brain_dist.stream.batches import evaluation_jobs, open_loader, training_jobs, with_loader
from brain_dist.stream.normalize import Normalize
from brain_dist.stream.plan import TrainingPlan, evaluation_micro_batches

CPU = torch.device("cpu")
STRONG = AugmentConfig(scale=(0.4, 1.0), ratio=(0.7, 1.4), rotate=30, brightness=0.3, contrast=0.3, erase=0.5)

LOADERS = ("opencv", "dali", "torch")

# Tolerance between two loaders, in 8-bit gray levels: mean, 99th percentile, maximum. Each rounds after decoding, after
# sampling and after brightness. DALI also reduces a decoded JPEG, where the others let libjpeg do that; in colour,
# the order of reducing and of upsampling the chroma shows at sharp edges.
MEAN_TOLERANCE, P99_TOLERANCE, MAX_TOLERANCE = 0.3, 2, 24


def batches(
    dataset: Dataset, config: DataConfig, device: torch.device, *, train: bool, batch: int = 16, first_step: int = 0
) -> list[Batch]:
    """The batches of an epoch, copied to the host."""
    rows = dataset.rows("train")
    if train:
        plan = TrainingPlan(
            rows=rows,
            shard=rows * 0,
            label=rows * 0,
            seed=3,
            epochs=1,
            global_batch=batch,
            micro_batch=batch,
        )
        micro_batches = plan.micro_batches(rank=0, world_size=1, first_step=first_step)
        jobs = training_jobs(dataset, config, STRONG, micro_batches, seed=3)
    else:
        micro_batches = evaluation_micro_batches(rows, micro_batch=batch, rank=0, world_size=1)
        jobs = evaluation_jobs(dataset, config, micro_batches)
    loaded = open_loader(config, dataset, jobs, augmented=train, micro_batch=batch, device=device)
    return [on_host(batch) for batch in loaded]


def on_host(batch: Batch) -> Batch:
    tensors = {name: getattr(batch, name).cpu() for name in ("image", "label", "row", "valid", "weight")}
    return dataclasses.replace(batch, **tensors)


@pytest.fixture(scope="module")
def mixed_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gray and RGB, JPEG and PNG, with sides of 41 to 304 pixels, or 1024: reductions of 1 to 16 for 64² out."""
    folder = tmp_path_factory.mktemp("mixed")
    formats = [("L", "jpg"), ("RGB", "jpg"), ("L", "png"), ("RGB", "png")]
    for number, ((mode, suffix), side, kind) in enumerate(
        itertools.product(formats, (41, 75, 150, 301, 1024), CLASSES)
    ):
        width, height = (side, side) if side == 1024 else (side + number % 4, side - number % 7)
        image = draw(number, max(width, height)).crop((0, 0, width, height)).convert(mode)
        if mode == "RGB":
            image = image.convert("RGB", (0.9, 0, 0, 8, 0, 0.8, 0, 0, 0, 0, 1, 0))  # tinted
        (folder / "images" / kind).mkdir(parents=True, exist_ok=True)
        stated = PngInfo()
        stated.add(b"sRGB", b"\0")  # by which OpenCV would turn colours into gray in linear light
        image.save(folder / "images" / kind / f"{number:03d}.{suffix}", quality=90, pnginfo=stated)
    options = ["--source", str(folder / "images"), "--out", str(folder / "shards"), "--fractions", "0.8,0.1,0.1"]
    in_process("shard", "build", *options)
    return folder / "shards"


@pytest.mark.parametrize("color", ["gray", "rgb"])
@pytest.mark.parametrize("train", [True, False], ids=["augmented", "evaluation"])
def test_all_loaders_make_the_same_pixels(mixed_shards: Path, color: str, train: bool, device: torch.device) -> None:
    dataset = open_dataset(mixed_shards)
    config = DataConfig(size=64, color=color, threads=2, head_crop=not train)  # type: ignore[arg-type]
    loaded = {
        loader: batches(dataset, dataclasses.replace(config, loader=loader), device, train=train)  # type: ignore[arg-type]
        for loader in LOADERS
    }
    for first, second in itertools.combinations(LOADERS, 2):
        assert len(loaded[first]) == len(loaded[second]) > 3
        for a, b in zip(loaded[first], loaded[second], strict=True):
            assert a.image.shape == b.image.shape == (16, 1 if color == "gray" else 3, 64, 64)
            for name in ("row", "label", "valid"):
                assert torch.equal(getattr(a, name), getattr(b, name))
            difference = (a.image.float() - b.image.float()).abs()
            assert difference.mean() < MEAN_TOLERANCE
            assert torch.quantile(difference, 0.99) <= P99_TOLERANCE
            assert difference.max() <= MAX_TOLERANCE
    pixels = torch.cat([batch.image for batch in loaded["opencv"]]).float()
    assert pixels.std() > 20, "the images are not blank"
    if color == "rgb":
        assert (pixels[:, 0] - pixels[:, 2]).abs().max() > 20, "the tint is there, in the order red, green, blue"


@pytest.mark.parametrize("loader", ["opencv", "dali"])
def test_as_many_batches_more_are_read_ahead_as_are_prepared(phantom_shards: Path, loader: str) -> None:
    """A slow read then keeps nobody waiting while prepared batches last: it began that much earlier."""
    dataset = open_dataset(phantom_shards)

    def requested(prefetch: int) -> int:
        config, count = DataConfig(size=32, loader=loader, threads=1, prefetch=prefetch), 0  # type: ignore[arg-type]

        def counted() -> Iterator[Job]:
            nonlocal count
            for job in evaluation_jobs(dataset, config, plan):
                count += 1
                yield job

        plan = evaluation_micro_batches(dataset.rows("train"), micro_batch=4, rank=0, world_size=1)
        loaded = open_loader(config, dataset, counted(), augmented=False, micro_batch=4, device=CPU)
        next(loaded)
        return count

    assert requested(4) - requested(2) == 2 + 2
    assert requested(2) >= 2 + 2 + 4


def test_a_reduced_image_holds_means_of_stored_pixels(mixed_shards: Path, device: torch.device) -> None:
    """1024² to 64²: every output pixel is the mean of 16 × 16 stored pixels. Of a JPEG, libjpeg takes the low
    frequencies of 8 × 8 of them instead.
    """
    dataset = open_dataset(mixed_shards)
    reader, config = ShardReader(dataset), DataConfig(size=64, loader="opencv")
    differences: dict[str, list[float]] = {".png": [], ".jpg": []}
    for batch in batches(dataset, config, device, train=False):
        for image, row in zip(batch.image[:, 0].numpy(), batch.row.tolist(), strict=True):
            stored = cv2.imdecode(np.frombuffer(reader.read(row), np.uint8), cv2.IMREAD_GRAYSCALE)
            if stored.shape == (1024, 1024):
                means = stored.reshape(64, 16, 64, 16).mean((1, 3))
                differences[Path(dataset.columns["source"][row]).suffix].append(float(np.abs(image - means).max()))
    assert min(len(values) for values in differences.values()) > 2
    assert max(differences[".png"]) <= 1
    assert max(differences[".jpg"]) <= 3


def test_the_default_loader_is_opencv_on_a_cpu_and_dali_on_a_gpu() -> None:
    dali = Config(data=DataConfig(loader="dali"))
    assert with_loader(Config(), torch.device("cuda", 0)) == dali
    assert with_loader(Config(), CPU).data.loader == "opencv"
    assert with_loader(dali, CPU) == dali


def test_a_batch_of_gray_images_is_widened_without_memory(phantom_shards: Path) -> None:
    image = batches(open_dataset(phantom_shards), DataConfig(size=64, color="rgb"), CPU, train=True)[0].image
    assert image.shape == (16, 3, 64, 64)
    assert image.stride(1) == 0


def test_threads_of_the_opencv_loader_end_with_it(phantom_shards: Path) -> None:
    dataset, config = open_dataset(phantom_shards), DataConfig(size=64, threads=3, prefetch=1)
    plan = evaluation_micro_batches(np.tile(dataset.rows("train"), 50), micro_batch=16, rank=0, world_size=1)
    drawn: list[Job] = []
    jobs = (drawn.append(job) or job for job in evaluation_jobs(dataset, config, plan))  # type: ignore[func-returns-value]
    before = set(threading.enumerate())
    loader = open_loader(config, dataset, jobs, augmented=False, micro_batch=16, device=CPU)
    for count in range(1, 5):
        next(loader)
        assert len(drawn) <= count + 1 + 5, "data.prefetch batches are made ahead, and five are read"
    assert set(threading.enumerate()) > before
    loader.close()  # type: ignore[attr-defined]
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("loader", ["opencv", "dali"])
def test_loading_from_the_middle_with_more_threads_gives_the_same_pixels(
    phantom_shards: Path, loader: str, device: torch.device
) -> None:
    dataset, config = open_dataset(phantom_shards), DataConfig(size=64, threads=1, loader=loader)  # type: ignore[arg-type]
    whole = batches(dataset, config, device, train=True)
    rest = batches(dataset, dataclasses.replace(config, threads=3), device, train=True, first_step=2)
    assert len(rest) == len(whole) - 2
    for a, b in zip(whole[2:], rest, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.row, b.row)


def test_labels_and_padding_match_their_rows(phantom_shards: Path, device: torch.device) -> None:
    dataset = open_dataset(phantom_shards)
    loaded = batches(dataset, DataConfig(size=32, threads=1), device, train=True, batch=32)
    labels = torch.from_numpy(dataset.columns["label"].astype(np.int64))
    for batch in loaded:
        assert torch.equal(batch.label, labels[batch.row])
    valid_rows = torch.cat([batch.row[batch.valid] for batch in loaded])
    assert torch.equal(valid_rows.sort().values, torch.from_numpy(dataset.rows("train")))


def test_synthetic_batches_follow_the_plan(phantom_shards: Path, device: torch.device) -> None:
    dataset = open_dataset(phantom_shards)
    real = batches(dataset, DataConfig(size=32, threads=1), device, train=True)
    noise = batches(dataset, DataConfig(size=32, loader="synthetic"), device, train=True)
    assert [b.row.tolist() for b in noise] == [b.row.tolist() for b in real]
    assert noise[0].image.shape == real[0].image.shape


def test_normalize_turns_one_gray_channel_into_three(device: torch.device) -> None:
    config = DataConfig()
    image = torch.arange(256, dtype=torch.uint8, device=device).reshape(1, 1, 16, 16)
    normalize = Normalize(config, 3, device, torch.float32)
    normalized = normalize(image)
    mean, std = (torch.tensor(values, device=device).reshape(1, 3, 1, 1) for values in (config.mean, config.std))
    torch.testing.assert_close(normalized, (image.float() / 255 - mean) / std)
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(normalize.to_gray(normalized)[0], image[0, 0].cpu().numpy())
    assert Normalize(config, 1, device, torch.bfloat16)(image).shape == (1, 1, 16, 16)


@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_one_decoder_of_the_gpu_takes_all_images(phantom_shards: Path, color: str) -> None:
    """Read from the graph, which DALI defines without a GPU but can only run with one."""
    config = DataConfig(size=32, color=color)  # type: ignore[arg-type]
    source = dali_loader._JobSource(open_dataset(phantom_shards), iter([]), config, augmented=True)
    pipeline = dali_loader._graph(source, config, gpu=True)(batch_size=4, num_threads=1, device_id=0)
    pipeline._build_graph()
    (decoder,) = [str(operator.spec) for operator in pipeline._ops if "image_slice" in str(operator.spec)]
    source.samples.close()
    assert "device: mixed\n" in decoder
    assert "hw_decoder_load: 0.000000\n" in decoder, "it would choose by the place in the batch"
    assert f"jpeg_fancy_upsampling: {color == 'rgb'}\n" in decoder


@pytest.mark.parametrize("loader", LOADERS)
def test_a_corrupt_image_is_reported_with_its_shard_and_key(
    phantom_shards: Path, tmp_path: Path, loader: str, device: torch.device
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(phantom_shards, shards)
    dataset = open_dataset(shards)
    row = int(dataset.rows("train")[5])
    offset = int(dataset.columns["offset"][row]) + int(dataset.columns["size"][row]) // 2
    with (shards / dataset.columns["shard"][row]).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))
    with pytest.raises(Fault, match=rf"{dataset.columns['shard'][row]}.*{dataset.columns['key'][row]}.*crc32"):
        batches(dataset, DataConfig(size=32, threads=1, loader=loader), device, train=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(("loader", "message"), [("opencv", "OpenCV cannot decode"), ("dali", "DALI cannot")])
def test_an_image_that_cannot_be_decoded_is_one_line(
    mixed_shards: Path, tmp_path: Path, loader: str, message: str, device: torch.device
) -> None:
    """Its checksum is right: it was stored so."""
    shutil.copytree(mixed_shards, tmp_path / "shards")
    dataset = open_dataset(tmp_path / "shards")
    columns = dict(dataset.columns)
    row = next(row for row in dataset.rows("train") if ".jpg" in columns["source"][row])
    offset, size = int(columns["offset"][row]), int(columns["size"][row])
    with (tmp_path / "shards" / columns["shard"][row]).open("r+b") as file:
        file.seek(offset)
        without_tables = file.read(size).replace(b"\xff\xdb", b"\xff\xfe")  # these tables become comments
        file.seek(offset)
        file.write(without_tables)
    columns["crc32"] = columns["crc32"].copy()
    columns["crc32"][row] = zlib.crc32(without_tables)
    dataset = dataclasses.replace(dataset, columns=columns)
    with pytest.raises(Fault, match=message) as caught:
        batches(dataset, DataConfig(size=32, threads=1, loader=loader), device, train=True)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_loading_process_that_is_killed_ends_the_run_with_one_line(phantom_shards: Path) -> None:
    dataset, config = open_dataset(phantom_shards), DataConfig(size=64, threads=1, prefetch=1, loader="torch")
    plan = evaluation_micro_batches(np.tile(dataset.rows("train"), 50), micro_batch=16, rank=0, world_size=1)
    jobs = evaluation_jobs(dataset, config, plan)
    loaded = open_loader(config, dataset, jobs, augmented=False, micro_batch=16, device=CPU)
    before = {process.pid for process in multiprocessing.active_children()}
    next(loaded)
    (worker,) = [process for process in multiprocessing.active_children() if process.pid not in before]
    worker.kill()
    with pytest.raises(Fault, match=r"(killed by signal|exited unexpectedly).*or space in /dev/shm"):
        list(loaded)
