"""model.compile: a compiled network trains as an eager one, with one graph."""

from __future__ import annotations

import dataclasses
from functools import partialmethod

import pytest
import torch
from engine_cases import new_engine, noise_batches, of_step, with_stage
from torch._dynamo.utils import counters

from brain_dist.config import Config, ModelConfig
from brain_dist.ranks.world import World


@pytest.fixture(autouse=True)
def _backend(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget compiled graphs. On the CPU, compile without inductor, which takes a minute for C++."""
    torch.compiler.reset()
    counters.clear()
    if device.type == "cpu":
        compile_module = partialmethod(torch.nn.Module.compile, backend="aot_eager")
        monkeypatch.setattr(torch.nn.Module, "compile", compile_module)


def with_network(zero_stage: int, precision: str, *, compiled: bool) -> Config:
    model = ModelConfig(name="test_convnext", compile=compiled)
    return dataclasses.replace(with_stage(zero_stage, precision=precision), model=model)


@pytest.mark.parametrize(
    ("zero_stage", "precision"),
    [
        pytest.param(0, "amp", marks=pytest.mark.slow),
        pytest.param(0, "bf16", marks=pytest.mark.slow),
        pytest.param(1, "bf16", marks=pytest.mark.slow),
        pytest.param(2, "amp", marks=pytest.mark.slow),
        (2, "bf16"),
    ],
)
def test_a_compiled_network_trains_as_an_eager_one_and_has_one_graph(
    world: World, device: torch.device, zero_stage: int, precision: str
) -> None:
    batches, results = noise_batches(36, device), []
    for compiled in (False, True):
        engine = new_engine(with_network(zero_stage, precision, compiled=compiled), world, device)
        result = []
        for step in range(3):
            result.append(float(engine.step(of_step(batches, step), lr=1e-3)))
            with engine.evaluating() as network:
                result += network(engine.normalize(batches[0].image)).float().view(-1).tolist()
        results.append(result)
        assert counters["stats"]["unique_graphs"] == int(compiled), "evaluation needs no graph of its own"
    assert results[1] == pytest.approx(results[0], abs=0.03)


@pytest.mark.parametrize("zero_stage", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_compiled_network_trains_its_classifier_alone_first(
    world: World, device: torch.device, zero_stage: int
) -> None:
    batches, weights = noise_batches(36, device), []
    for compiled in (False, True):
        engine = new_engine(with_network(zero_stage, "fp32", compiled=compiled), world, device, frozen_steps=2)
        steps = [engine.weights()]
        for step in range(3):
            engine.step(of_step(batches, step), lr=1e-3)
            steps.append(engine.weights())
        weights.append(steps)
    assert counters["stats"]["unique_graphs"] == 2, "one for the classifier, one for all"
    eager, compiled_steps = weights
    for before, after, trains in zip(compiled_steps, compiled_steps[1:], (False, False, True), strict=False):
        assert torch.equal(before["stem.0.weight"], after["stem.0.weight"]) is not trains
        assert not torch.equal(before["head.fc.weight"], after["head.fc.weight"])
    for name, value in eager[-1].items():
        torch.testing.assert_close(compiled_steps[-1][name], value, rtol=1e-3, atol=1e-3)
