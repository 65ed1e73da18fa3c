"""Time of a resume early and late in an epoch of 100,000 images.

``python -m benchmarks.resume_time [--images 100000] [--repeats 5]`` repeats the index of a few hundred phantoms to that
length. It loads a checkpoint and the first augmented batch, alternately at 1 % and at 99 % of the epoch.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.support.common import training_shards
from brain_dist.config import Config, DataConfig, ModelConfig, RunConfig, TrainConfig
from brain_dist.networks.create import create_network
from brain_dist.ranks.device import choose_device
from brain_dist.ranks.group import process_group
from brain_dist.ranks.world import discover
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.stream.batches import training_batches
from brain_dist.stream.plan import steps_per_epoch
from brain_dist.training.engine import Engine
from brain_dist.training.restoring import restore
from brain_dist.training.saving import Saver


def main() -> None:
    """Print the median seconds of both positions."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    world = discover({})
    device = choose_device(world, "auto")
    config = Config(
        run=RunConfig(device="auto"),
        data=DataConfig(size=96),
        model=ModelConfig(name="convnext_atto"),
        train=TrainConfig(epochs=1, global_batch=64, micro_batch=32, precision="amp"),
    )
    with process_group(world, device), tempfile.TemporaryDirectory() as folder:
        dataset = repeat_rows(open_dataset(training_shards(Path(folder), 256)), arguments.images)
        engine = Engine(config, create_network(config.model, len(dataset.classes), seed=0), world, device)
        root = Path(folder) / "checkpoints"
        saver = Saver(root, engine, {}, keep=1)
        saver.begin(0)
        saver.finish()
        steps = steps_per_epoch(len(dataset.rows("train")), config.train.global_batch)
        seconds: dict[int, list[float]] = {1: [], 99: []}
        for repeat in range(arguments.repeats + 1):
            for percent, times in seconds.items():
                start = time.perf_counter()
                restore(root, 0, engine)
                next(training_batches(config, dataset, world, device, first_step=steps * percent // 100))
                if repeat:  # the first repeat is a warm-up
                    times.append(time.perf_counter() - start)
    early, late = (statistics.median(times) for times in seconds.values())
    print(f"{len(dataset.rows('train')):,} images, {steps:,} steps an epoch, medians of {arguments.repeats}")
    print(f"resume at  1 %: {early:.3f} s\nresume at 99 %: {late:.3f} s ({late / early:.2f} times)")


def repeat_rows(dataset: Dataset, images: int) -> Dataset:
    """The dataset with its rows repeated until it has ``images`` rows."""
    times = -(-images // len(dataset.columns["key"]))
    columns = {name: np.tile(column, times)[:images] for name, column in dataset.columns.items()}
    return dataclasses.replace(dataset, columns=columns)


if __name__ == "__main__":
    main()
