"""A step whose loss or gradient is no number leaves nothing behind, at every ZeRO stage and precision."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_engine import CONFIG, CPU, data

from brain_dist import fragments, models
from brain_dist.config import Config, ModelConfig
from brain_dist.dist import World
from brain_dist.engine import Engine


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
    found = {f"{f.name}:{k}": t.clone() for f in fragments.held(engine.deepspeed) for k, t in f.tensors.items()}
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
    engine = Engine(settings, models.create(settings.model, 4, seed=0), world, CPU)
    batches = data(36)
    engine.step(batches[0:3], lr=1e-3)
    assert engine.skips.total == 0
    assert engine.grad_norm
    before, taken = state(engine), fragments.counters(engine.deepspeed)["optimizer_steps"]
    spoiling = spoil(engine, how)
    share = engine.step(batches[3:6], lr=1e-3)
    spoiling.remove()
    assert bool(share.isfinite()) is (how == "gradient")
    assert (engine.skips.total, engine.skips.in_a_row) == (1, 1)
    assert engine.grad_norm is None
    after = state(engine)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert fragments.counters(engine.deepspeed)["optimizer_steps"] == taken

    engine.step(batches[6:9], lr=1e-3)
    assert (engine.skips.total, engine.skips.in_a_row) == (1, 0)
    assert engine.grad_norm
    moved = state(engine)
    assert any(not torch.equal(moved[name], value) for name, value in before.items())
    assert all(bool(value.isfinite().all()) for value in moved.values())
