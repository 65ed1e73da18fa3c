"""A sheet of pictures of every random change of a training: would a radiologist still name the tumour?

    python -m benchmarks.augmentations SHARDS [SHARDS …] --out SHEET.png

SHARDS have boxes or masks of tumours, and several folders are joined. Each row has ten training images: the original
above, what the network gets below, with the label that goes with it. The input is drawn without crop, flip and
rotation, so that both pictures can be compared.

The last lines are the cost of each change in CPU milliseconds an image, as differences to a loader without changes;
measured alternately in this process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from brain_dist.config import AugmentConfig, DataConfig
from brain_dist.errors import leave
from brain_dist.store.access import open_data
from brain_dist.store.dataset import Dataset
from brain_dist.stream.batch import Batch
from brain_dist.stream.batches import open_loader, training_jobs
from brain_dist.stream.plan import TrainingPlan

STILL = AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, rotate=0.0, brightness=0.0, contrast=0.0)
ROWS: dict[str, tuple[AugmentConfig, bool]] = {
    "tumour erased": (replace(STILL, tumour_erased=1.0), False),
    "tumour pasted": (replace(STILL, tumour_pasted=1.0), False),
    "tissue pasted": (replace(STILL, tissue_pasted=1.0), False),
    "intensity curve": (replace(STILL, curves=1.0), False),
    "resolution": (replace(STILL, resolution=1.0), False),
    "blur": (replace(STILL, blur=1.0), False),
    "bias field": (replace(STILL, bias=1.0), False),
    "noise": (replace(STILL, noise=1.0), False),
    "JPEG": (replace(STILL, jpeg=1.0), False),
    "rim removed": (replace(STILL, rim=1.0), False),
    "random network": (replace(STILL, network=1.0), False),
    "stretch": (STILL, True),
}
COUNT = 10  # pictures of a row
BATCH = 16
ROUNDS, BATCHES = 5, 12  # of the measurement
GAP, TITLE = 4, 22  # pixels


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, write the sheet, print the costs; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.augmentations", description=__doc__.partition("\n")[0])
    parser.add_argument("shards", nargs="+", help="shard folders")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    parser.add_argument("--size", type=int, default=192, help="of the pictures (default: 192)")
    parser.add_argument("--cost-size", type=int, default=96, help="input size of the measurement (default: 96)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is random")
    parser.add_argument("--rows", default=",".join(ROWS), help="rows of the sheet, separated by commas (default: all)")
    arguments = parser.parse_args(argv)
    places = {"shards": arguments.shards[0]} if len(arguments.shards) == 1 else {"sources": tuple(arguments.shards)}
    with tempfile.TemporaryDirectory() as scratch:
        config = DataConfig(**places, size=arguments.size, head_crop=True, threads=1, loader="opencv")
        dataset = open_data(config, Path(scratch))
        rows = arguments.rows.split(",")
        sheet([part for name in rows for part in pictures(name, dataset, config, arguments.seed)], arguments)
        print(arguments.out)
        print_costs(rows, dataset, replace(config, size=arguments.cost_size))
    return 0


def batches(dataset: Dataset, config: DataConfig, augment: AugmentConfig, seed: int) -> Iterator[Batch]:
    """The batches of endless training."""
    rows = dataset.rows("train")
    plan = TrainingPlan(
        rows=rows, shard=rows * 0, label=rows * 0, seed=seed, epochs=1_000_000, global_batch=BATCH, micro_batch=BATCH
    )
    jobs = training_jobs(dataset, config, augment, plan.micro_batches(0, 1), seed=seed)
    import torch

    torch.set_num_threads(1)  # waiting threads would count as CPU time
    return open_loader(config, dataset, jobs, augmented=True, micro_batch=BATCH, device=torch.device("cpu"))


def pictures(name: str, dataset: Dataset, config: DataConfig, seed: int) -> Iterator[tuple[str, list[np.ndarray]]]:
    """A row of originals and a row of what becomes of them, with their titles."""
    augment, stretch = ROWS[name]
    changed = batches(dataset, replace(config, stretch=stretch), augment, seed)
    before: list[np.ndarray] = []
    after: list[np.ndarray] = []
    labels: list[str] = []
    for plain, new in zip(batches(dataset, config, STILL, seed), changed, strict=True):
        for i in range(BATCH):
            if len(before) < COUNT and not np.array_equal(plain.image[i], new.image[i]):
                before.append(plain.image[i, 0].numpy())
                after.append(new.image[i, 0].numpy())
                labels.append("{} to {}".format(*(dataset.classes[int(each.label[i])] for each in (plain, new))))
        if len(before) == COUNT:
            break
    yield name, before
    yield ", ".join(labels), after


def sheet(rows: Sequence[tuple[str, list[np.ndarray]]], arguments: argparse.Namespace) -> None:
    """Write titled rows of pictures."""
    from PIL import Image, ImageDraw

    size = arguments.size
    canvas = Image.new("L", (COUNT * (size + GAP), len(rows) * (size + TITLE)), 40)
    draw = ImageDraw.Draw(canvas)
    for number, (title, images) in enumerate(rows):
        y = number * (size + TITLE)
        for column, text in enumerate(title.split(", ")):
            draw.text((column * (size + GAP) + 2, y + 5), text, fill=255)
        for column, image in enumerate(images):
            canvas.paste(Image.fromarray(image), (column * (size + GAP), y + TITLE))
    canvas.save(arguments.out)


def print_costs(rows: Sequence[str], dataset: Dataset, config: DataConfig) -> None:
    """CPU milliseconds an image that each change adds, the median over rounds, with the smallest and largest."""
    running = {name: batches(dataset, replace(config, stretch=ROWS[name][1]), ROWS[name][0], 0) for name in rows}
    running = {"without changes": batches(dataset, config, STILL, 0), **running}
    spent: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(ROUNDS + 1):
        for name, loader in running.items():
            start = time.process_time()
            for _ in range(BATCHES):
                next(loader)
            spent[name].append(1000 * (time.process_time() - start) / (BATCHES * BATCH))
    base = np.array(spent.pop("without changes")[1:])  # the first round warms up
    print(
        f"{config.size}²: {np.median(base):.2f} CPU ms an image without changes; what each adds, if every visit has it:"
    )
    for name, values in spent.items():
        added = np.array(values[1:]) - base
        print(f"{name:16} {np.median(added):6.2f}  ({added.min():.2f} to {added.max():.2f})")


if __name__ == "__main__":
    leave(main)
