"""Loaders: DALI and the torch reference make the same pixels from the same plan, and report damaged shards."""

from __future__ import annotations

import dataclasses
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from brain_dist.config import AugmentConfig, DataConfig
from brain_dist.errors import Fault
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.stream.batch import Batch
from brain_dist.stream.batches import evaluation_jobs, open_loader, training_jobs
from brain_dist.stream.normalize import Normalize
from brain_dist.stream.plan import TrainingPlan, evaluation_micro_batches

CPU = torch.device("cpu")
STRONG = AugmentConfig(scale=(0.4, 1.0), ratio=(0.7, 1.4), rotate=30, brightness=0.3, contrast=0.3, erase=0.5)

# Tolerance between two implementations of the same augmentation, in 8-bit gray levels. Each rounds after decoding,
# resampling and brightness, so pixels differ by single levels; at sharp edges, resampling weights cause a few more.
MEAN_TOLERANCE, P99_TOLERANCE, MAX_TOLERANCE = 0.3, 2, 40


def batches(dataset: Dataset, config: DataConfig, *, train: bool, batch: int = 16, first_step: int = 0) -> list[Batch]:
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
    return list(open_loader(config, dataset, jobs, augmented=train, micro_batch=batch, device=CPU))


@pytest.mark.parametrize("color", ["gray", "rgb"])
@pytest.mark.parametrize("train", [True, False], ids=["augmented", "plain"])
def test_dali_and_torch_make_the_same_pixels(phantom_shards: Path, color: str, train: bool) -> None:
    dataset = open_dataset(phantom_shards)
    config = DataConfig(size=64, color=color, threads=1, head_crop=not train)  # type: ignore[arg-type]
    dali = batches(dataset, config, train=train)
    reference = batches(dataset, dataclasses.replace(config, loader="torch"), train=train)
    assert len(dali) == len(reference) > 3
    for a, b in zip(dali, reference, strict=True):
        assert a.image.shape == b.image.shape == (16, 1 if color == "gray" else 3, 64, 64)
        for name in ("row", "label", "valid"):
            assert torch.equal(getattr(a, name), getattr(b, name))
        difference = (a.image.float() - b.image.float()).abs()
        assert difference.mean() < MEAN_TOLERANCE
        assert torch.quantile(difference, 0.99) <= P99_TOLERANCE
        assert difference.max() <= MAX_TOLERANCE
    pixels = torch.cat([a.image for a in dali]).float()
    assert pixels.std() > 20, "the images are not blank"


def test_loading_from_the_middle_gives_the_same_pixels(phantom_shards: Path) -> None:
    dataset, config = open_dataset(phantom_shards), DataConfig(size=64, threads=1)
    whole, rest = batches(dataset, config, train=True), batches(dataset, config, train=True, first_step=2)
    assert len(rest) == len(whole) - 2
    for a, b in zip(whole[2:], rest, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.row, b.row)


def test_labels_and_padding_match_their_rows(phantom_shards: Path) -> None:
    dataset = open_dataset(phantom_shards)
    loaded = batches(dataset, DataConfig(size=32, threads=1), train=True, batch=32)
    labels = torch.from_numpy(dataset.columns["label"].astype(np.int64))
    for batch in loaded:
        assert torch.equal(batch.label, labels[batch.row])
    valid_rows = torch.cat([batch.row[batch.valid] for batch in loaded])
    assert torch.equal(valid_rows.sort().values, torch.from_numpy(dataset.rows("train")))


def test_synthetic_batches_follow_the_plan(phantom_shards: Path) -> None:
    dataset = open_dataset(phantom_shards)
    real = batches(dataset, DataConfig(size=32, threads=1), train=True)
    noise = batches(dataset, DataConfig(size=32, loader="synthetic"), train=True)
    assert [b.row.tolist() for b in noise] == [b.row.tolist() for b in real]
    assert noise[0].image.shape == real[0].image.shape


def test_normalize_turns_one_gray_channel_into_three() -> None:
    config = DataConfig()
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    normalize = Normalize(config, 3, CPU, torch.float32)
    normalized = normalize(image)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (config.mean, config.std))
    torch.testing.assert_close(normalized, (image.float() / 255 - mean) / std)
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(normalize.to_gray(normalized)[0], image[0, 0].numpy())
    assert Normalize(config, 1, CPU, torch.bfloat16)(image).shape == (1, 1, 16, 16)


@pytest.mark.parametrize("loader", ["dali", "torch"])
def test_a_corrupt_image_is_reported_with_its_shard_and_key(phantom_shards: Path, tmp_path: Path, loader: str) -> None:
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
        batches(dataset, DataConfig(size=32, threads=1, loader=loader), train=True)  # type: ignore[arg-type]


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
