"""The engine's arithmetic against plain PyTorch, in one process."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from timm.optim import param_groups_layer_decay
from torch.nn.functional import cross_entropy

from brain_dist.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from brain_dist.errors import UserError
from brain_dist.networks.create import create_network
from brain_dist.ranks.device import be_deterministic
from brain_dist.ranks.world import World, discover
from brain_dist.stream import plan
from brain_dist.stream.batch import Batch
from brain_dist.training.deepspeed_setup import deepspeed_config
from brain_dist.training.engine import Engine
from brain_dist.training.optim import create_optimizer
from brain_dist.training.restoring import restore
from brain_dist.training.saving import Saver

CPU, ALONE = torch.device("cpu"), discover({})
CONFIG = Config(
    run=RunConfig(device="cpu"),
    data=DataConfig(size=32),
    model=ModelConfig(name="test_convnext"),
    optim=OptimConfig(lr=1e-2, clip=0.5, label_smoothing=0.1, warmup_epochs=0),
    train=TrainConfig(epochs=1, global_batch=12, micro_batch=4, precision="fp32", zero_stage=1),
)


SHARES = (0.5, 0.25, 0.15, 0.1)  # of the classes in the noise


def data(
    samples: int, epochs: int = 1, balance: plan.Balance = "none", world: World = ALONE, micro_batch: int = 4
) -> list[Batch]:
    """A rank's micro-batches of some epochs of noise, of classes of unequal size."""
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (samples, 1, 32, 32), dtype=np.uint8), draw.choice(4, samples, p=SHARES)
    rows = np.arange(samples, dtype=np.int64)
    asked = {"epochs": epochs, "global_batch": 12, "micro_batch": micro_batch, "label": labels}
    asked |= {"rank": world.rank, "world": world.size}
    planned = plan.training(rows, rows * 0, seed=0, balance=balance, **asked)  # type: ignore[arg-type]
    return [Batch.of(torch.from_numpy(images[m.rows]), m, labels) for m in planned]


@pytest.mark.parametrize("balance", ["none", "weights"])
def test_steps_equal_plain_adamw_also_on_a_partly_filled_batch(world: World, balance: plan.Balance) -> None:
    """22 samples in batches of 12: the second step has 10, over three micro-batches of 4, 4 and 2."""
    batches = data(22, balance=balance)
    all_labels = torch.cat([b.label[b.valid] for b in batches])
    inverse_frequency = len(all_labels) / (4 * torch.bincount(all_labels))
    engine = Engine(CONFIG, create_network(CONFIG.model, 4, seed=0), world, CPU)
    plain = create_network(CONFIG.model, 4, seed=0)
    optimiser = create_optimizer(CONFIG.optim, plain)
    for step in range(2):
        micros = batches[3 * step : 3 * step + 3]
        share = engine.step(micros, lr=1e-2)
        image = torch.cat([engine.normalize(b.image)[b.valid] for b in micros])
        label = torch.cat([b.label[b.valid] for b in micros])
        assert len(label) == (12, 10)[step]
        losses = cross_entropy(plain(image), label, label_smoothing=0.1, reduction="none")
        weight = inverse_frequency[label] if balance == "weights" else torch.ones(len(label))
        loss = (weight * losses).sum() / weight.sum()
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimiser.step()
        assert float(share) == pytest.approx(loss.item(), rel=1e-5)
        assert engine.grad_norm == pytest.approx(norm.item(), rel=1e-4)
        assert norm > 0.5, "the clip is at work"
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(engine.module.state_dict()[name], value, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_loss_weighs_both_labels(world: World, kind: str) -> None:
    config = dataclasses.replace(CONFIG, augment=AugmentConfig(**{kind: 1.0}))
    engine = Engine(config, create_network(config.model, 4, seed=0), world, CPU)
    seen = []
    engine.deepspeed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    batch = data(12)[0]
    with torch.no_grad():
        losses = engine._losses(batch)
    plain = engine.normalize(batch.image)
    mixed = seen[0]
    partner = torch.arange(4) ^ 1
    if kind == "mixup":
        # each pixel lies on the line between the two images, at the same place for both halves of a pair
        weight = ((mixed - plain[partner]) * (plain - plain[partner])).sum((1, 2, 3)) / (
            plain - plain[partner]
        ).square().sum((1, 2, 3))
    else:
        own, others = (mixed == plain).all(1), (mixed == plain[partner]).all(1)
        assert (own | others).all()
        weight = 1 - (others & ~own).float().mean((1, 2))
    assert torch.allclose(weight[0::2], weight[1::2], atol=0.02)
    assert ((weight > 0) & (weight < 1)).any()
    logits = engine.module(mixed)
    batch = dataclasses.replace(batch, weight=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    with torch.no_grad():
        weighted = engine._losses(batch)
    own_loss = cross_entropy(logits, batch.label, reduction="none", label_smoothing=0.1)
    other_loss = cross_entropy(logits, batch.label[partner], reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(losses, weight * own_loss + (1 - weight) * other_loss, rtol=1e-2, atol=1e-2)
    own_loss, other_loss = own_loss * batch.weight, other_loss * batch.weight[partner]
    torch.testing.assert_close(weighted, weight * own_loss + (1 - weight) * other_loss, rtol=1e-2, atol=2e-2)


def test_evaluation_uses_the_average_and_gives_the_weights_back(world: World) -> None:
    config = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, ema=0.5))
    engine = Engine(config, create_network(config.model, 4, seed=0), world, CPU)
    batches = data(24)
    for step in range(2):
        engine.step(batches[3 * step : 3 * step + 3], lr=1e-2)
    before = {name: value.clone() for name, value in engine.module.state_dict().items()}
    assert engine.ema is not None
    with engine.evaluating() as model:
        inside = {name: value.clone() for name, value in engine.module.state_dict().items()}
        assert not engine.module.training
        assert model is engine.deepspeed
    assert all(torch.equal(inside[name], engine.ema.state[name]) for name in inside)
    assert not all(torch.equal(inside[name], before[name]) for name in inside)
    assert all(torch.equal(value, before[name]) for name, value in engine.module.state_dict().items())
    assert engine.module.training


def test_16_bit_weights_with_batchnorm_are_refused(world: World) -> None:
    config = dataclasses.replace(
        CONFIG, model=ModelConfig(name="test_efficientnet"), train=dataclasses.replace(CONFIG.train, precision="bf16")
    )
    with pytest.raises(UserError, match=r"use train\.precision=amp"):
        Engine(config, create_network(config.model, 4, seed=0), world, CPU)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"train_batch_size": 4}', r"follows from train\.global_batch"),
        ('{"zero_optimization": {"stage": 3}}', r"says ZeRO stage 3, train\.zero_stage=1"),
        ('{"zero_optimization": {"compute_grad_norm": false}}', r"compute_grad_norm .* remove it"),
        ("{", "is not JSON"),
        ("[]", "not a JSON object"),
    ],
)
def test_deepspeed_settings_that_contradict_are_named(tmp_path, text: str, says: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "ds.json").write_text(text)
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, deepspeed=str(tmp_path / "ds.json")))
    with pytest.raises(UserError, match=says):
        deepspeed_config(config, 1)


def stage(number: int, **more: object) -> Config:
    """CONFIG under another ZeRO stage."""
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, zero_stage=number, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_freezing_trains_the_head_as_if_alone_and_then_everything_from_fresh_moments(world: World, zero: int) -> None:
    freeze_then_free(world, zero)


def freeze_then_free(world: World, zero: int) -> None:
    """Against plain PyTorch: AdamW over the classifier only, then a second one that is new to all the rest."""
    batches, frozen = data(24, epochs=4), 4  # two epochs of two steps
    config = stage(zero, micro_batch=4 // world.size)
    mine = data(24, epochs=4, world=world, micro_batch=4 // world.size)
    engine = Engine(config, create_network(CONFIG.model, 4, seed=0), world, CPU, frozen_steps=frozen)
    plain = create_network(CONFIG.model, 4, seed=0)
    start = {name: value.clone() for name, value in plain.state_dict().items()}
    head = list(plain.get_classifier().parameters())
    rest = [p for p in plain.parameters() if all(p is not h for h in head)]
    first, second = (
        torch.optim.AdamW(
            [
                {"params": [p for p in some if p.ndim > 1], "weight_decay": 0.05},
                {"params": [p for p in some if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=1e-2,
        )
        for some in (head, rest)
    )
    for step in range(8):
        engine.step(mine[3 * step : 3 * step + 3], lr=1e-2)
        micros = batches[3 * step : 3 * step + 3]
        image, label = torch.cat([engine.normalize(b.image) for b in micros]), torch.cat([b.label for b in micros])
        plain.zero_grad()
        cross_entropy(plain(image), label, label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_(head if step < frozen else [*head, *rest], 0.5)
        first.step()
        if step >= frozen:
            second.step()
        ours = engine.weights()
        for name, value in ours.items():
            if step < frozen and not name.startswith("head.fc."):
                assert torch.equal(value, start[name]), name
            torch.testing.assert_close(value, plain.state_dict()[name], rtol=2e-3, atol=3e-4)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_early_layers_learn_slower_also_after_a_resume(world: World, zero: int, tmp_path: Path) -> None:
    """Layer-wise decay under each ZeRO stage against plain AdamW over timm's groups, then from a checkpoint."""
    config = dataclasses.replace(
        stage(zero),
        model=ModelConfig(name="test_convnext", options={"ls_init_value": None}),
        optim=dataclasses.replace(CONFIG.optim, layer_decay=0.5),
    )
    batches = data(24)
    engine = Engine(config, create_network(config.model, 4, seed=0), world, CPU)
    plain = create_network(config.model, 4, seed=0)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    groups = param_groups_layer_decay(plain, weight_decay=0.05, layer_decay=0.5)
    optimiser = torch.optim.AdamW([{**g, "lr": 1e-2 * g["lr_scale"]} for g in groups])
    for step in range(2):
        if step == 1:
            saver = Saver(tmp_path, engine, {}, keep=1)
            saver.begin(1)
            saver.normalize()
        micros = batches[3 * step : 3 * step + 3]
        engine.step(micros, lr=1e-2)
        image, label = torch.cat([engine.normalize(b.image) for b in micros]), torch.cat([b.label for b in micros])
        optimiser.zero_grad()
        cross_entropy(plain(image), label, label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimiser.step()
        ours = engine.weights()
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=2e-4)
        if step == 0:  # Adam's first update is as large as the learning rate, whatever the gradient
            moved = {
                name: float((ours[name] - before[name]).abs().median()) for name in ("head.fc.bias", "stem.0.bias")
            }
            assert moved["head.fc.bias"] == pytest.approx(1e-2, rel=0.01)
            assert moved["stem.0.bias"] == pytest.approx(1e-2 * min(g["lr_scale"] for g in groups), rel=0.01)
            assert moved["stem.0.bias"] < moved["head.fc.bias"] / 30

    resumed = Engine(config, create_network(config.model, 4, seed=1), world, CPU)
    restore(tmp_path, 1, resumed)
    resumed.step(batches[3:6], lr=1e-2)
    assert all(torch.equal(value, ours[name]) for name, value in resumed.weights().items())


def test_frozen_features_keep_their_batchnorm_statistics_also_after_an_evaluation(world: World) -> None:
    config = dataclasses.replace(CONFIG, model=ModelConfig(name="test_efficientnet"))
    engine = Engine(config, create_network(config.model, 4, seed=0), world, CPU, frozen_steps=2)
    batches, seen = data(24, epochs=2), []
    for step in range(3):
        engine.step(batches[3 * step : 3 * step + 3], lr=1e-2)
        with engine.evaluating():
            seen.append({n: v.clone() for n, v in engine.module.state_dict().items() if "running" in n})
    assert seen[0]
    assert all((seen[0][name] == float("var" in name)).all() for name in seen[0])
    assert all(torch.equal(seen[1][name], seen[0][name]) for name in seen[0])
    assert not any(torch.equal(seen[2][name], seen[0][name]) for name in seen[0])


def test_an_optimiser_kept_in_the_hosts_memory_trains_the_same(world: World) -> None:
    """configs/deepspeed/zero3_offload.json beside plain ZeRO-3."""
    offload = str(ROOT / "configs" / "deepspeed" / "zero3_offload.json")
    losses, batches = [], data(24)
    for file in (None, offload):
        engine = Engine(stage(3, deepspeed=file), create_network(CONFIG.model, 4, seed=0), world, CPU)
        assert engine.deepspeed.optimizer.offload_optimizer is (file is not None)
        losses.append([float(engine.step(batches[3 * s : 3 * s + 3], lr=1e-2)) for s in range(2)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][0] != losses[0][1]


def test_deterministic_mode_trains_twice_to_the_same_bits(world: World) -> None:
    """With dropped paths, whatever the generator's state, and no operation that torch would refuse."""
    model = ModelConfig(name="test_convnext", drop_path=0.3, drop=0.3)
    config, ends = dataclasses.replace(stage(2), model=model), []
    be_deterministic()
    try:
        for seed_of_the_world_around in (1, 2):
            torch.manual_seed(seed_of_the_world_around)
            engine, batches = Engine(config, create_network(model, 4, seed=0), world, CPU), data(24)
            for step in range(2):
                engine.step(batches[3 * step : 3 * step + 3], lr=1e-2)
            ends.append(engine.weights())
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
