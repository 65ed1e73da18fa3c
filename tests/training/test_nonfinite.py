"""A step whose loss or gradient is no number leaves nothing behind, at every ZeRO stage and precision."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from test_engine import CONFIG, CPU, data

from brain_dist.config import Config, ModelConfig
from brain_dist.errors import UserError
from brain_dist.networks.create import create_network
from brain_dist.ranks.world import World
from brain_dist.training.engine import Engine
from brain_dist.training.fragments import counters, local_fragments
from brain_dist.training.restoring import restore
from brain_dist.training.saving import Saver


def config(stage: int, precision: str, network: str) -> Config:
    train = dataclasses.replace(CONFIG.train, zero_stage=stage, precision=precision)
    optim = dataclasses.replace(CONFIG.optim, ema=0.0 if stage == 3 else 0.5)
    return dataclasses.replace(CONFIG, train=train, optim=optim, model=ModelConfig(name=network))


def spoil(engine: Engine, how: str) -> torch.utils.hooks.RemovableHandle:
    """Make the logits of the next forward passes such that the loss, or only its gradient, is not finite."""
    if how == "loss":
        return engine.module.register_forward_hook(lambda module, inputs, logits: logits * torch.inf)

    def overflow(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.inf

    def attach(module: torch.nn.Module, inputs: tuple[torch.Tensor], logits: torch.Tensor) -> None:
        logits.register_hook(overflow)

    return engine.module.register_forward_hook(attach)


def state(engine: Engine) -> dict[str, torch.Tensor]:
    """All that a step may change: fp32 weights, moments, buffers, average."""
    found = {f"{f.name}:{k}": t.clone() for f in local_fragments(engine.deepspeed) for k, t in f.tensors.items()}
    found |= {f"buffer:{n}": b.clone() for n, b in engine.module.named_buffers() if "num_batches" not in n}
    return found | ({f"ema:{n}": t.clone() for n, t in engine.ema.state.items()} if engine.ema else {})


@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize(
    ("stage", "precision", "network"),
    [
        *((stage, "fp32", "test_convnext") for stage in (0, 1, 2, 3)),
        *((stage, "bf16", "test_convnext") for stage in (0, 1, 2)),
        (0, "amp", "test_efficientnet"),  # BatchNorm: a spoilt batch must not reach the running statistics either
        (2, "amp", "test_efficientnet"),
    ],
)
def test_a_step_that_is_no_number_is_skipped_and_counted(
    world: World, stage: int, precision: str, network: str, how: str
) -> None:
    settings = config(stage, precision, network)
    engine = Engine(settings, create_network(settings.model, 4, seed=0), world, CPU)
    batches = data(36)
    engine.step(batches[0:3], lr=1e-3)
    assert engine.skips.total == 0
    assert engine.grad_norm
    before, taken = state(engine), counters(engine.deepspeed)["optimizer_steps"]
    spoiling = spoil(engine, how)
    share = engine.step(batches[3:6], lr=1e-3)
    spoiling.remove()
    assert bool(share.isfinite()) is (how == "gradient")
    assert (engine.skips.total, engine.skips.in_a_row) == (1, 1)
    assert engine.grad_norm is None
    after = state(engine)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert counters(engine.deepspeed)["optimizer_steps"] == taken

    engine.step(batches[6:9], lr=1e-3)
    assert (engine.skips.total, engine.skips.in_a_row) == (1, 0)
    assert engine.grad_norm
    moved = state(engine)
    assert any(not torch.equal(moved[name], value) for name, value in before.items())
    assert all(bool(value.isfinite().all()) for value in moved.values())


def allow_fp16(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    """What DeepSpeed believes of this processor: torch computes in fp16 on any, slowly."""
    from deepspeed.accelerator import get_accelerator

    kind, known = type(get_accelerator()), get_accelerator().supported_dtypes()
    monkeypatch.setattr(kind, "is_fp16_supported", lambda self: answer)
    monkeypatch.setattr(kind, "supported_dtypes", lambda self: [*known, torch.float16])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_fp16_scales_its_loss_and_a_resumed_run_goes_on_with_the_same_scale(
    world: World, stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_fp16(monkeypatch, True)
    settings = config(stage, "fp16", "test_convnext")
    engine = Engine(settings, create_network(settings.model, 4, seed=0), world, CPU)
    batches = data(60)
    engine.step(batches[0:3], lr=1e-3)
    assert engine.grad_norm
    assert engine.grad_norm < 100, "it is that of the loss, not of the scaled one"
    before, scales = state(engine), [engine.loss_scale]
    for step in (1, 2):
        spoiling = spoil(engine, "gradient")
        engine.step(batches[3 * step : 3 * step + 3], lr=1e-3)
        spoiling.remove()
        scales.append(engine.loss_scale)
    # DeepSpeed halves the scale at the second overflow; without ZeRO at every one
    assert scales == [2.0**16, *((2.0**16, 2.0**15) if stage else (2.0**15, 2.0**14))]
    assert engine.skips.total == 2
    assert all(torch.equal(value, before[name]) for name, value in state(engine).items())

    saver = Saver(tmp_path, engine, {}, keep=1)
    saver.begin(3)
    saver.finish()
    resumed = Engine(settings, create_network(settings.model, 4, seed=1), world, CPU)
    restore(tmp_path, 3, resumed)
    assert resumed.loss_scale == scales[-1]
    for each in (engine, resumed):
        for step in (3, 4):
            each.step(batches[3 * step : 3 * step + 3], lr=1e-3)
    after = state(engine)
    assert all(torch.equal(value, after[name]) for name, value in state(resumed).items())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def test_fp16_where_there_is_none_is_told_in_a_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    allow_fp16(monkeypatch, False)
    settings = config(1, "fp16", "test_convnext")
    with pytest.raises(UserError, match="use bf16, or amp"):
        Engine(settings, create_network(settings.model, 4, seed=0), world, CPU)
