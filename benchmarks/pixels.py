"""Differences between the pixels of the loaders: ``python -m benchmarks.pixels [SHARDS ...]``.

Each pair of loaders on the CPU loads the same images with the same decisions, strongly augmented or plain, gray or RGB.
The first table has the absolute differences in 8-bit gray levels. In the second, the augmented crops without brightness
and erasing are compared with an ideal picture, in which every output pixel is the mean of the stored image over its
area: those of each loader, and the same crops resampled twice, by PIL's bilinear filter to the output size and then
linearly by the rotation.

Without SHARDS, phantoms of 400² are stored as gray JPEG, RGB JPEG and gray PNG. The exit code is 1 if a pair differs
by more than 0.3 gray levels in the mean or 2 at the 99th percentile.
"""

from __future__ import annotations

import argparse
import io
import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.support.common import run_child
from brain_dist.augmentation.augment import Decisions
from brain_dist.config import AugmentConfig, DataConfig
from brain_dist.errors import run
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.store.reader import ShardReader
from brain_dist.stream.batch import Job

LOADERS = ("opencv", "dali", "torch")
STRONG = AugmentConfig(scale=(0.4, 1.0), ratio=(0.7, 1.4), rotate=30, brightness=0.3, contrast=0.3, erase=0.5)
GEOMETRY = replace(STRONG, brightness=0, contrast=0, erase=0)
MEAN_TOLERANCE, P99_TOLERANCE = 0.3, 2.0  # gray levels
BATCH = 32
SAMPLES = 8  # per output pixel and axis, for the mean over its area


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, print both tables and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pixels", description=__doc__.split("\n\n")[0])
    parser.add_argument("shards", type=Path, nargs="*", help="folders of `shard build`; default: phantoms")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 96], help="of the output, default 224 96")
    parser.add_argument("--images", type=int, default=256, help="of each folder, default 256")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="pixels-") as scratch:
        datasets = [open_dataset(folder) for folder in arguments.shards or phantom_formats(Path(scratch))]
        code = print_differences(datasets, arguments.sizes, arguments.images)
        print()
        print_ideal(datasets, arguments.sizes, arguments.images // 4)
        return code


def phantom_formats(folder: Path) -> Iterator[Path]:
    """Build shards of the same phantoms in three formats."""
    from PIL import Image

    shard = [sys.executable, "-m", "brain_dist.shard"]
    images = folder / "phantoms"
    run_child([*shard, "phantom", "--out", str(images), "--patients", "64", "--slices", "4", "--size", "400"])
    for mode, suffix in (("L", "jpg"), ("RGB", "jpg"), ("L", "png")):
        source, shards = folder / f"{suffix}-{mode}-images", folder / f"phantoms {mode} {suffix}"
        for path in images.rglob("ph*.jpg"):
            with Image.open(path) as file:
                picture = file.convert(mode)
            if mode == "RGB":
                picture = picture.convert("RGB", (0.9, 0, 0, 8, 0, 0.8, 0, 0, 0, 0, 1, 0))  # tinted
            target = source / path.parent.name / f"{path.stem}.{suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            picture.save(target, quality=90)
        run_child([*shard, "build", "--source", str(source), "--out", str(shards)])
        yield shards


def load(dataset: Dataset, config: DataConfig, loader: str, augment: AugmentConfig | None, images: int) -> np.ndarray:
    """The first ``images`` training images, uint8 [images, C, H, W]; ``augment`` None is the evaluation's."""
    import torch

    from brain_dist.stream.batches import open_loader

    config = replace(config, loader=loader)  # type: ignore[arg-type]
    augmented = augment is not None and augment != GEOMETRY
    jobs = iter(list(planned_jobs(dataset, config, augment, images)))
    batches = open_loader(config, dataset, jobs, augmented=augmented, micro_batch=BATCH, device=torch.device("cpu"))
    return np.concatenate([batch.without_padding().image.numpy() for batch in batches])


def planned_jobs(dataset: Dataset, config: DataConfig, augment: AugmentConfig | None, images: int) -> Iterator[Job]:
    """The jobs of the first ``images`` images."""
    from brain_dist.stream.batches import evaluation_jobs, training_jobs
    from brain_dist.stream.plan import evaluation_micro_batches

    plan = evaluation_micro_batches(dataset.rows("train")[:images], micro_batch=BATCH, rank=0, world_size=1)
    if augment is None:
        return evaluation_jobs(dataset, config, plan)
    return training_jobs(dataset, config, augment, plan, seed=0)


def print_differences(datasets: Sequence[Dataset], sizes: Sequence[int], images: int) -> int:
    """Print the differences of each pair of loaders in each case; return 1 if a tolerance is exceeded."""
    pairs = list(itertools.combinations(LOADERS, 2))
    head = ("shards", "size", "colour", "pixels", *(f"{first}, {second}" for first, second in pairs))
    print("Absolute differences in gray levels: mean / 99th percentile / maximum\n")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    exceeded = False
    for dataset, size, color, augment in itertools.product(datasets, sizes, ("gray", "rgb"), (STRONG, None)):
        config = DataConfig(size=size, color=color, threads=1, head_crop=augment is None)  # type: ignore[arg-type]
        loaded = {loader: load(dataset, config, loader, augment, images) for loader in LOADERS}
        cells = [dataset.root.name, f"{size}²", color, "augmented" if augment else "evaluation"]
        for first, second in pairs:
            gap = np.abs(loaded[first].astype(np.int16) - loaded[second])
            mean, p99 = float(gap.mean()), float(np.quantile(gap, 0.99))
            exceeded |= mean > MEAN_TOLERANCE or p99 > P99_TOLERANCE
            cells.append(f"{mean:.3f} / {p99:.0f} / {gap.max()}")
        print(f"| {' | '.join(cells)} |", flush=True)
    return int(exceeded)


def print_ideal(datasets: Sequence[Dataset], sizes: Sequence[int], images: int) -> None:
    """Print the distance of each loader's gray crops, and of crops resampled twice, from the ideal picture."""
    head = ("shards", "size", *(f"{loader}, dB" for loader in LOADERS), "resampled twice, dB")
    print("Peak signal-to-noise ratio to the ideal picture\n")
    print(f"| {' | '.join(head)} |\n|---|---|{'--:|' * (len(head) - 2)}")
    for dataset, size in itertools.product(datasets, sizes):
        config = DataConfig(size=size, threads=1)
        stored = _decoded_crops(dataset, config, images)
        ideal = np.stack([_ideal(image, affine, size) for image, affine in stored])
        twice = np.stack([_resampled_twice(image, affine, size) for image, affine in stored])
        loaded = [load(dataset, config, loader, GEOMETRY, images)[:, 0] for loader in LOADERS]
        cells = [f"{_decibels(pixels, ideal):.1f}" for pixels in (*loaded, twice)]
        print(f"| {dataset.root.name} | {size}² | {' | '.join(cells)} |", flush=True)


def _decoded_crops(dataset: Dataset, config: DataConfig, images: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The crop of each image, whole pixels uint8 [h, w], and its flip and rotation [2, 3] about the centre."""
    from PIL import Image

    reader, crops = ShardReader(dataset), []
    for job in planned_jobs(dataset, config, GEOMETRY, images):
        decisions: Decisions = job.decisions
        for row, (x, y, width, height), affine in zip(
            job.micro.rows[job.micro.valid].tolist(), decisions.crop.tolist(), decisions.affine, strict=False
        ):
            with Image.open(io.BytesIO(reader.read(row))) as file:
                file.draft("L", file.size)
                crops.append((np.asarray(file.convert("L"))[y : y + height, x : x + width], affine))
    return crops


def _ideal(image: np.ndarray, affine: np.ndarray, size: int) -> np.ndarray:
    """The mean over each output pixel's area of the stored pixels, float32 [size, size]."""
    import torch

    samples = _grid_sample(image, affine, size * SAMPLES)
    return torch.nn.functional.avg_pool2d(samples, SAMPLES)[0, 0].numpy()


def _resampled_twice(image: np.ndarray, affine: np.ndarray, size: int) -> np.ndarray:
    """The image resized by PIL's antialiased bilinear filter, then flipped and rotated, float32 [size, size]."""
    from PIL import Image

    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    return _grid_sample(np.asarray(resized), affine, size)[0, 0].round().numpy()


def _grid_sample(image: np.ndarray, affine: np.ndarray, size: int) -> Any:
    """Linear interpolation, black outside: float32 [1, 1, size, size]."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    grid = affine_grid(torch.from_numpy(affine)[None], [1, 1, size, size], align_corners=False)
    return grid_sample(torch.from_numpy(image.astype(np.float32))[None, None], grid, align_corners=False)


def _decibels(pixels: np.ndarray, ideal: np.ndarray) -> float:
    """Peak signal-to-noise ratio over all images, dB."""
    return float(20 * np.log10(255) - 10 * np.log10(np.square(pixels - ideal).mean()))


if __name__ == "__main__":
    raise SystemExit(run(main))
