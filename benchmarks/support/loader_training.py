"""Training on real batches beside training on synthetic ones, step by step in one process."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.support.processes import cpu_seconds, wait_until_idle

BATCH, WARMUP, PAIRS = 32, 2, 20


def training_pairs(shards: Path, model: str, size: int, threads: int) -> dict[str, list[dict[str, float]]]:
    """CPU seconds and images/s of training steps that alternate between real and synthetic batches.

    After each step, everything waits until the loader has prepared as many batches ahead as it can. So each step pays
    for the preparation of one batch of its own kind, and for nothing of the other kind.

    Args:
        shards: Folder of `shard build`.
        model: Name of the network.
        size: Height and width of the images [pixels].
        threads: Threads of torch; the loader has one.

    Returns:
        For "real" and "synthetic", the seconds of CPU time an image ("cpu") and images/s ("rate") of each step.
    """
    from brain_dist.ranks.world import discover

    world = discover({})  # before torch is imported, as in training: its threads sleep when they wait
    import torch

    from brain_dist.config import Config, DataConfig, ModelConfig, TrainConfig
    from brain_dist.networks.create import create_network
    from brain_dist.ranks.device import choose_device
    from brain_dist.ranks.group import process_group
    from brain_dist.store.dataset import open_dataset
    from brain_dist.stream.batches import training_batches
    from brain_dist.training.engine import Engine

    def config(loader: str) -> Config:
        return Config(
            data=DataConfig(size=size, loader=loader, threads=1),  # type: ignore[arg-type]
            model=ModelConfig(name=model),
            train=TrainConfig(global_batch=BATCH, micro_batch=BATCH, precision="fp32", epochs=100),
        )

    dataset, device = open_dataset(shards), choose_device(world, "auto")
    steps: dict[str, list[dict[str, float]]] = {"real": [], "synthetic": []}
    with process_group(world, device):
        torch.set_num_threads(threads)
        network = create_network(ModelConfig(name=model), len(dataset.classes), seed=0)
        engine = Engine(config("synthetic"), network, world, device)
        batches = {
            name: training_batches(config(loader), dataset, world, device, first_step=0)
            for name, loader in (("real", "auto"), ("synthetic", "synthetic"))
        }
        wait_until_idle()
        for number in range(WARMUP + PAIRS):
            # each kind comes first in every second pair, so that a drift of the machine does not favour one
            for name in ("real", "synthetic") if number % 2 else ("synthetic", "real"):
                start, before = time.perf_counter(), cpu_seconds()
                float(engine.step([next(batches[name])], lr=1e-4))  # waits for the loss, as training does
                wall = time.perf_counter() - start
                _, used = wait_until_idle()
                if number >= WARMUP:
                    steps[name].append({"cpu": (used - before) / BATCH, "rate": BATCH / wall})
    return steps
