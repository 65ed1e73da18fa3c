"""Configurations, batches and a check that tests of the engine share, in one process and in two."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from brain_dist.config import Balance, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from brain_dist.networks.create import create_network
from brain_dist.ranks.world import World, discover
from brain_dist.stream.batch import Batch
from brain_dist.stream.plan import TrainingPlan
from brain_dist.training.engine import Engine

CPU, SINGLE = torch.device("cpu"), discover({})
CONFIG = Config(
    data=DataConfig(size=32),
    model=ModelConfig(name="test_convnext"),
    optim=OptimConfig(lr=1e-2, clip=0.5, label_smoothing=0.1, warmup_epochs=0),
    train=TrainConfig(epochs=1, global_batch=12, micro_batch=4, precision="fp32", zero_stage=1),
)
CLASS_FREQUENCIES = (0.5, 0.25, 0.15, 0.1)


def with_stage(zero_stage: int, **train_settings: Any) -> Config:
    """CONFIG with another ZeRO stage and other settings of ``train``."""
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, zero_stage=zero_stage, **train_settings))


def noise_batches(
    samples: int,
    device: torch.device,
    *,
    epochs: int = 1,
    balance: Balance = "none",
    world: World = SINGLE,
    micro_batch: int = 4,
) -> list[Batch]:
    """A rank's micro-batches of noise images, in global batches of 12, with classes of unequal size."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (samples, 1, 32, 32), dtype=np.uint8)
    labels = generator.choice(4, samples, p=CLASS_FREQUENCIES)
    rows = np.arange(samples, dtype=np.int64)
    plan = TrainingPlan(
        rows=rows,
        shard=rows * 0,
        label=labels,
        seed=0,
        epochs=epochs,
        global_batch=12,
        micro_batch=micro_batch,
        balance=balance,
    )
    micro_batches = plan.micro_batches(world.rank, world.size)
    return [Batch.of(torch.from_numpy(images[micro.rows]).to(device), micro, labels) for micro in micro_batches]


def of_step(batches: Sequence[Batch], step: int) -> Sequence[Batch]:
    """The three micro-batches of a step."""
    return batches[3 * step : 3 * step + 3]


def valid_samples(engine: Engine, batches: Sequence[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's input and the labels of all valid samples."""
    image = torch.cat([engine.normalize(batch.image)[batch.valid] for batch in batches])
    return image, torch.cat([batch.label[batch.valid] for batch in batches])


def new_engine(config: Config, world: World, device: torch.device, *, seed: int = 0, **options: Any) -> Engine:
    """An engine around a network of 4 classes."""
    return Engine(config, create_network(config.model, 4, seed=seed), world, device, **options)


def check_frozen_training(
    world: World, device: torch.device, zero_stage: int, name: Literal["adamw", "adam"] = "adamw"
) -> None:
    """The engine with 4 frozen steps equals plain PyTorch with one optimiser for the head, a later one for the rest."""
    batches, frozen_steps = noise_batches(24, device, epochs=4), 4  # 2 steps per epoch
    config = with_stage(zero_stage, micro_batch=4 // world.size)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, name=name))
    own_batches = noise_batches(24, device, epochs=4, world=world, micro_batch=4 // world.size)
    engine = new_engine(config, world, device, frozen_steps=frozen_steps)
    plain = create_network(CONFIG.model, 4, seed=0).to(device)
    initial = {name: value.clone() for name, value in plain.state_dict().items()}
    head = list(plain.get_classifier().parameters())
    rest = [p for p in plain.parameters() if all(p is not h for h in head)]
    head_optimizer, rest_optimizer = _optimizer(name, head), _optimizer(name, rest)
    for step in range(8):
        engine.step(of_step(own_batches, step), lr=1e-2)
        image, label = valid_samples(engine, of_step(batches, step))
        plain.zero_grad()
        cross_entropy(plain(image), label, label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_(head if step < frozen_steps else [*head, *rest], 0.5)
        head_optimizer.step()
        if step >= frozen_steps:
            rest_optimizer.step()
        for key, value in engine.weights().items():
            value = value.to(device)
            if step < frozen_steps and not key.startswith("head.fc."):
                assert torch.equal(value, initial[key]), key
            torch.testing.assert_close(value, plain.state_dict()[key], rtol=2e-3, atol=3e-4)


def _optimizer(name: str, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    matrices = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05}
    vectors = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}
    return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[name]([matrices, vectors], lr=1e-2)
