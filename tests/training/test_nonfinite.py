"""A step with a non-finite loss or gradient changes nothing, at every ZeRO stage and precision."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from engine_cases import CONFIG, new_engine, noise_batches, of_step, with_stage

from brain_dist.config import Config, ModelConfig
from brain_dist.errors import UserError
from brain_dist.ranks.world import World
from brain_dist.training.engine import Engine
from brain_dist.training.fragments import local_fragments, optimizer_counters, restore_optimizer_counters
from brain_dist.training.restoring import restore
from brain_dist.training.saving import Saver


def make_config(zero_stage: int, precision: str, network: str) -> Config:
    optim = dataclasses.replace(CONFIG.optim, ema=0.0 if zero_stage == 3 else 0.5)
    return dataclasses.replace(
        with_stage(zero_stage, precision=precision), optim=optim, model=ModelConfig(name=network)
    )


def make_nonfinite(engine: Engine, part: str) -> torch.utils.hooks.RemovableHandle:
    """Make the loss, or only the gradient, of the next steps infinite, until the returned hook is removed."""
    if part == "loss":
        return engine.module.register_forward_hook(lambda module, inputs, logits: logits * torch.inf)

    def make_gradient_infinite(module: torch.nn.Module, inputs: tuple[torch.Tensor], logits: torch.Tensor) -> None:
        logits.register_hook(lambda gradient: gradient * torch.inf)

    return engine.module.register_forward_hook(make_gradient_infinite)


def state(engine: Engine) -> dict[str, torch.Tensor]:
    """Copies of all that a step may change: master weights, moments, buffers, EMA."""
    tensors = {f"{f.name}:{kind}": t for f in local_fragments(engine.deepspeed) for kind, t in f.tensors.items()}
    tensors |= {f"buffer:{n}": b for n, b in engine.module.named_buffers() if "num_batches" not in n}
    tensors |= {f"ema:{name}": t for name, t in engine.ema.state.items()} if engine.ema else {}
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("part", ["loss", "gradient"])
@pytest.mark.parametrize(
    ("zero_stage", "precision", "network"),
    [
        *((stage, "fp32", "test_convnext") for stage in (0, 1, 2, 3)),
        *((stage, "bf16", "test_convnext") for stage in (0, 1, 2)),
        (0, "amp", "test_efficientnet"),  # a network with BatchNorm's running statistics
        (2, "amp", "test_efficientnet"),
    ],
)
def test_nonfinite_step_is_skipped_and_counted(
    world: World, device: torch.device, zero_stage: int, precision: str, network: str, part: str
) -> None:
    config = make_config(zero_stage, precision, network)
    engine = new_engine(config, world, device)
    batches = noise_batches(36, device)
    engine.step(of_step(batches, 0), lr=1e-3)
    assert engine.skipped.total == 0
    assert engine.grad_norm.isfinite()
    before, optimizer_steps = state(engine), optimizer_counters(engine.deepspeed)["optimizer_steps"]
    hook = make_nonfinite(engine, part)
    loss_share = engine.step(of_step(batches, 1), lr=1e-3)
    hook.remove()
    assert bool(loss_share.isfinite()) is (part == "gradient")
    assert (engine.skipped.total, engine.skipped.in_a_row) == (1, 1)
    assert not engine.grad_norm.isfinite()
    after_skip = state(engine)
    assert all(torch.equal(after_skip[name], value) for name, value in before.items())
    assert optimizer_counters(engine.deepspeed)["optimizer_steps"] == optimizer_steps

    engine.step(of_step(batches, 2), lr=1e-3)
    assert (engine.skipped.total, engine.skipped.in_a_row) == (1, 0)
    assert engine.grad_norm.isfinite()
    after_step = state(engine)
    assert any(not torch.equal(after_step[name], value) for name, value in before.items())
    assert all(bool(value.isfinite().all()) for value in after_step.values())


def set_fp16_support(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    """Set what DeepSpeed believes about this CPU. Torch computes in fp16 on any CPU, slowly."""
    from deepspeed.accelerator import get_accelerator

    accelerator, dtypes = type(get_accelerator()), get_accelerator().supported_dtypes()
    monkeypatch.setattr(accelerator, "is_fp16_supported", lambda self: supported)
    monkeypatch.setattr(accelerator, "supported_dtypes", lambda self: [*dtypes, torch.float16])


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_fp16_loss_scale_is_halved_on_overflow_and_survives_a_resume(
    world: World, device: torch.device, zero_stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_fp16_support(monkeypatch, True)
    config = make_config(zero_stage, "fp16", "test_convnext")
    engine = new_engine(config, world, device)
    batches = noise_batches(60, device)
    engine.step(of_step(batches, 0), lr=1e-3)
    assert engine.grad_norm.isfinite()
    assert 0 < engine.grad_norm < 100, "the norm must be that of the unscaled loss"
    before, scales = state(engine), [engine.loss_scale]
    for step in (1, 2):
        hook = make_nonfinite(engine, "gradient")
        engine.step(of_step(batches, step), lr=1e-3)
        hook.remove()
        scales.append(engine.loss_scale)
    # DeepSpeed halves the scale at the second overflow; without ZeRO at every overflow
    assert scales == [2.0**16, *((2.0**16, 2.0**15) if zero_stage else (2.0**15, 2.0**14))]
    assert engine.skipped.total == 2
    assert all(torch.equal(value, before[name]) for name, value in state(engine).items())

    saver = Saver(tmp_path, engine, {}, keep=1)
    saver.begin(3)
    saver.finish()
    resumed = new_engine(config, world, device, seed=1)
    restore(tmp_path, 3, resumed)
    assert resumed.loss_scale == scales[-1]
    for trained in (engine, resumed):
        for step in (3, 4):
            trained.step(of_step(batches, step), lr=1e-3)
    after = state(engine)
    assert all(torch.equal(value, after[name]) for name, value in state(resumed).items())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_fp16_updates_by_the_same_gradient_as_fp32(
    world: World, device: torch.device, zero_stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam hides a gradient of the wrong scale in the weights; its moments and the clipping do not."""
    set_fp16_support(monkeypatch, True)
    norms, moments = [], []
    for precision in ("fp32", "fp16"):
        engine = new_engine(make_config(zero_stage, precision, "test_convnext"), world, device)
        engine.step(of_step(noise_batches(12, device), 0), lr=1e-3)
        norms.append(engine.grad_norm.item())
        fragments = local_fragments(engine.deepspeed)
        moments.append(torch.cat([fragment.tensors["exp_avg"].flatten() for fragment in fragments]).norm().item())
    assert norms[0] > CONFIG.optim.clip, "the gradient is clipped"
    assert norms[1] == pytest.approx(norms[0], rel=0.02)
    assert moments[1] == pytest.approx(moments[0], rel=0.02)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_an_overflow_at_the_smallest_loss_scale_is_a_skipped_step(
    world: World, device: torch.device, zero_stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_fp16_support(monkeypatch, True)
    engine = new_engine(make_config(zero_stage, "fp16", "test_convnext"), world, device)
    smallest = {"cur_scale": 1.0, "cur_hysteresis": 1}
    restore_optimizer_counters(engine.deepspeed, {"optimizer_steps": 0, "loss_scale": smallest})
    hook = make_nonfinite(engine, "loss")
    for step in range(2):
        engine.step(of_step(noise_batches(24, device), step), lr=1e-3)
    hook.remove()
    assert (engine.skipped.in_a_row, engine.loss_scale) == (2, 1.0)


def test_fp16_on_an_unsupported_device_is_rejected(
    world: World, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_fp16_support(monkeypatch, False)
    config = make_config(1, "fp16", "test_convnext")
    with pytest.raises(UserError, match="use bf16 or amp"):
        new_engine(config, world, device)
