"""The engine's arithmetic against plain PyTorch, in one process."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_cases import (
    CONFIG,
    check_frozen_training,
    new_engine,
    noise_batches,
    of_step,
    valid_samples,
    with_stage,
)
from helpers import ROOT
from timm.optim import param_groups_layer_decay
from torch.nn.functional import cross_entropy

from brain_dist.config import AugmentConfig, Balance, ModelConfig
from brain_dist.errors import Fault, UserError
from brain_dist.networks.create import create_network
from brain_dist.ranks.device import enable_determinism
from brain_dist.ranks.world import World
from brain_dist.training.engine import Engine
from brain_dist.training.fragments import local_fragments, optimizer_counters
from brain_dist.training.loss import weighted_losses
from brain_dist.training.optim import create_optimizer
from brain_dist.training.restoring import restore
from brain_dist.training.saving import Saver


@pytest.mark.parametrize("balance", ["none", "weights"])
def test_steps_equal_plain_adamw_with_a_partial_batch(world: World, device: torch.device, balance: Balance) -> None:
    """22 samples in global batches of 12: the second step has 10, in three micro-batches of 4, 4 and 2."""
    batches = noise_batches(22, device, balance=balance)
    all_labels = torch.cat([batch.label[batch.valid] for batch in batches])
    class_weight = len(all_labels) / (4 * torch.bincount(all_labels))
    engine = new_engine(CONFIG, world, device)
    plain = create_network(CONFIG.model, 4, seed=0).to(device)
    optimizer = create_optimizer(CONFIG.optim, plain)
    for step in range(2):
        loss_share = engine.step(of_step(batches, step), lr=1e-2)
        image, label = valid_samples(engine, of_step(batches, step))
        assert len(label) == (12, 10)[step]
        losses = cross_entropy(plain(image), label, label_smoothing=0.1, reduction="none")
        weight = class_weight[label] if balance == "weights" else torch.ones_like(label)
        loss = (weight * losses).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        assert float(loss_share) == pytest.approx(loss.item(), rel=1e-5)
        assert engine.grad_norm.item() == pytest.approx(norm.item(), rel=1e-4)
        assert norm > 0.5, "the gradient must be clipped"
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(engine.module.state_dict()[name], value, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("precision", ["fp32", "amp", "bf16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_the_first_update_is_as_large_as_the_learning_rate(
    world: World, device: torch.device, zero_stage: int, precision: str
) -> None:
    """As Adam's is, whatever the gradient; and before it, the master weights are the weights."""
    engine = new_engine(with_stage(zero_stage, precision=precision), world, device)
    fragments = {f.name: f.tensors["weight"] for f in local_fragments(engine.deepspeed)}
    before = {name: tensor.clone() for name, tensor in fragments.items()}
    weights = engine.weights()
    assert all(torch.equal(tensor.cpu(), weights[name].float().view(-1)) for name, tensor in before.items())
    engine.step(of_step(noise_batches(12, device), 0), lr=1e-2)
    update = (fragments["head.fc.bias"] - before["head.fc.bias"]).abs()
    assert float(update.median()) == pytest.approx(1e-2, rel=0.01)
    assert optimizer_counters(engine.deepspeed)["optimizer_steps"] == 1


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_loss_weights_both_labels(world: World, device: torch.device, kind: str) -> None:
    config = dataclasses.replace(CONFIG, augment=AugmentConfig(**{kind: 1.0}))
    engine = new_engine(config, world, device)
    network_inputs = []
    engine.deepspeed.register_forward_pre_hook(lambda _, inputs: network_inputs.append(inputs[0].clone()))
    batch = noise_batches(12, device)[0]
    weighted_batch = dataclasses.replace(batch, weight=torch.tensor([1.0, 2.0, 3.0, 4.0], device=device))
    with torch.no_grad():
        losses = weighted_losses(engine.deepspeed, engine.normalize, batch, config)
        weighted = weighted_losses(engine.deepspeed, engine.normalize, weighted_batch, config)

    mixed, plain = network_inputs[0], engine.normalize(batch.image)
    partner = torch.arange(4, device=device) ^ 1
    if kind == "mixup":
        # each mixed image is on the line between its two images; project it on that line
        direction = plain - plain[partner]
        weight = ((mixed - plain[partner]) * direction).sum((1, 2, 3)) / direction.square().sum((1, 2, 3))
    else:
        own, pasted = (mixed == plain).all(1), (mixed == plain[partner]).all(1)
        assert (own | pasted).all()
        weight = 1 - (pasted & ~own).float().mean((1, 2))
    assert torch.allclose(weight[0::2], weight[1::2], atol=0.02)
    assert ((weight > 0) & (weight < 1)).any()
    logits = engine.module(mixed)
    own_loss = cross_entropy(logits, batch.label, reduction="none", label_smoothing=0.1)
    partner_loss = cross_entropy(logits, batch.label[partner], reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(losses, weight * own_loss + (1 - weight) * partner_loss, rtol=1e-2, atol=1e-2)
    own_loss, partner_loss = own_loss * weighted_batch.weight, partner_loss * weighted_batch.weight[partner]
    torch.testing.assert_close(weighted, weight * own_loss + (1 - weight) * partner_loss, rtol=1e-2, atol=2e-2)


def test_evaluation_uses_ema_weights_and_restores_the_trained_ones(world: World, device: torch.device) -> None:
    config = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, ema=0.5))
    engine = new_engine(config, world, device)
    batches = noise_batches(24, device)
    for step in range(2):
        engine.step(of_step(batches, step), lr=1e-2)
    before = {name: value.clone() for name, value in engine.module.state_dict().items()}
    assert engine.ema is not None
    with engine.evaluating() as network:
        inside = {name: value.clone() for name, value in engine.module.state_dict().items()}
        assert not engine.module.training
        assert network is engine.deepspeed
    assert all(torch.equal(inside[name], engine.ema.state[name]) for name in inside)
    assert not all(torch.equal(inside[name], before[name]) for name in inside)
    assert all(torch.equal(value, before[name]) for name, value in engine.module.state_dict().items())
    assert engine.module.training


def test_batchnorm_in_16_bits_is_rejected(world: World, device: torch.device) -> None:
    config = dataclasses.replace(with_stage(1, precision="bf16"), model=ModelConfig(name="test_efficientnet"))
    with pytest.raises(UserError, match=r"use train\.precision=amp"):
        new_engine(config, world, device)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_frozen_steps_train_the_head_alone_and_the_rest_then_starts_fresh(
    world: World, device: torch.device, zero_stage: int
) -> None:
    check_frozen_training(world, device, zero_stage)


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_weight_decay_of_frozen_layers_does_not_enter_the_moments_of_adam(
    world: World, device: torch.device, zero_stage: int
) -> None:
    check_frozen_training(world, device, zero_stage, "adam")


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_layer_decay_equals_plain_adamw_also_after_a_resume(
    world: World, device: torch.device, zero_stage: int, tmp_path: Path
) -> None:
    config = dataclasses.replace(
        with_stage(zero_stage),
        model=ModelConfig(name="test_convnext"),
        optim=dataclasses.replace(CONFIG.optim, layer_decay=0.5),
    )
    batches = noise_batches(24, device)
    engine = new_engine(config, world, device)
    assert len(engine.deepspeed.optimizer.param_groups) == 2, "DeepSpeed works on each group separately"
    plain = create_network(config.model, 4, seed=0).to(device)
    initial = {name: value.cpu().clone() for name, value in plain.state_dict().items()}
    groups = param_groups_layer_decay(plain, weight_decay=0.05, layer_decay=0.5)
    optimizer = torch.optim.AdamW([{**group, "lr": 1e-2 * group["lr_scale"]} for group in groups])
    for step in range(2):
        if step == 1:
            saver = Saver(tmp_path, engine, {}, keep=1)
            saver.begin(1)
            saver.finish()
        engine.step(of_step(batches, step), lr=1e-2)
        image, label = valid_samples(engine, of_step(batches, step))
        optimizer.zero_grad()
        cross_entropy(plain(image), label, label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        weights = engine.weights()
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(weights[name], value.cpu(), rtol=1e-3, atol=2e-4)
        if step == 0:  # Adam's first update is as large as the learning rate, whatever the gradient
            head, stem = (
                float((weights[name] - initial[name]).abs().median()) for name in ("head.fc.bias", "stem.0.bias")
            )
            assert head == pytest.approx(1e-2, rel=0.01)
            assert stem == pytest.approx(1e-2 * min(group["lr_scale"] for group in groups), rel=0.01)
            assert stem < head / 30

    resumed = new_engine(config, world, device, seed=1)
    restore(tmp_path, 1, resumed)
    resumed.step(of_step(batches, 1), lr=1e-2)
    assert all(torch.equal(value, weights[name]) for name, value in resumed.weights().items())


SMALL: dict[str, Any] = {"embed_dim": 16, "depth": 1, "num_heads": 2}
SMALL_SWIN: dict[str, Any] = {"img_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 4}
# networks with buffers that are not in the state dict: indices of relative positions, tables of rotary embeddings
NOT_PERSISTENT: dict[str, dict[str, Any]] = {
    "levit_128s": {"embed_dim": [16, 16, 16], "depth": [1, 1, 1], "key_dim": 8, "num_heads": [1, 1, 1]},
    "swin_tiny_patch4_window7_224": SMALL_SWIN,
    "swinv2_tiny_window8_256": SMALL_SWIN,
    "beit_base_patch16_224": {**SMALL, "img_size": 32},
    "eva02_tiny_patch14_224": {**SMALL, "img_size": 32, "patch_size": 16},
    "vit_small_patch16_dinov3": {**SMALL, "img_size": 32},
    "test_maxvit": {},
}


@pytest.mark.parametrize("name", NOT_PERSISTENT)
def test_networks_with_buffers_that_are_not_saved_resume(
    world: World, device: torch.device, tmp_path: Path, name: str
) -> None:
    model = ModelConfig(name=name, options=NOT_PERSISTENT[name])
    config = dataclasses.replace(CONFIG, model=model, optim=dataclasses.replace(CONFIG.optim, ema=0.5))
    engine = new_engine(config, world, device)
    assert {name for name, _ in engine.module.named_buffers()} - set(engine.module.state_dict())
    saver = Saver(tmp_path, engine, {}, keep=1)
    saver.begin(0)
    saver.finish()
    resumed = new_engine(config, world, device, seed=1)
    restore(tmp_path, 0, resumed)
    size = {"levit_128s": 224, "test_maxvit": 160}.get(name, 32)
    image = torch.rand(2, 3, size, size, device=device)
    with engine.evaluating() as network, resumed.evaluating() as other, torch.no_grad():
        assert torch.equal(network(image), other(image))


def test_restoring_the_checkpoint_of_another_network_is_a_fault(
    world: World, device: torch.device, tmp_path: Path
) -> None:
    engine = new_engine(CONFIG, world, device)
    saver = Saver(tmp_path, engine, {}, keep=1)
    saver.begin(0)
    saver.finish()
    other = Engine(CONFIG, create_network(CONFIG.model, 5, seed=0), world, device)
    with pytest.raises(Fault, match=r"of another network"):
        restore(tmp_path, 0, other)


def test_frozen_steps_and_evaluations_keep_batchnorm_statistics(world: World, device: torch.device) -> None:
    config = dataclasses.replace(CONFIG, model=ModelConfig(name="test_efficientnet"))
    engine = new_engine(config, world, device, frozen_steps=2)
    batches, statistics = noise_batches(24, device, epochs=2), []
    for step in range(3):
        engine.step(of_step(batches, step), lr=1e-2)
        with engine.evaluating():
            statistics.append({n: v.clone() for n, v in engine.module.state_dict().items() if "running" in n})
    first, second, third = statistics
    assert first
    assert all((value == float("var" in name)).all() for name, value in first.items())
    assert all(torch.equal(second[name], value) for name, value in first.items())
    assert not any(torch.equal(third[name], value) for name, value in first.items())


def test_optimizer_offload_trains_the_same(world: World, device: torch.device) -> None:
    """configs/deepspeed/zero3_offload.json against plain ZeRO-3."""
    offload = str(ROOT / "configs" / "deepspeed" / "zero3_offload.json")
    losses, batches = [], noise_batches(24, device)
    for file in (None, offload):
        engine = new_engine(with_stage(3, deepspeed=file), world, device)
        assert engine.deepspeed.optimizer.offload_optimizer is (file is not None)
        losses.append([float(engine.step(of_step(batches, step), lr=1e-2)) for step in range(2)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][0] != losses[0][1]


def test_deterministic_mode_gives_the_same_bits_twice(world: World, device: torch.device) -> None:
    """With dropout and dropped paths, whatever the state of torch's generator."""
    model = ModelConfig(name="test_convnext", drop_path=0.3, drop=0.3)
    config, weights = dataclasses.replace(with_stage(2), model=model), []
    enable_determinism()
    try:
        for generator_seed in (1, 2):
            torch.manual_seed(generator_seed)
            engine, batches = new_engine(config, world, device), noise_batches(24, device)
            for step in range(2):
                engine.step(of_step(batches, step), lr=1e-2)
            weights.append(engine.weights())
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
