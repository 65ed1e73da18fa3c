"""Run by test_ranks.py in two processes: each check compares what the two ranks compute with one process.

``two_ranks.py arithmetic`` or ``two_ranks.py compiled`` names the checks.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Any

import torch
import torch.distributed as dist
from engine_cases import CONFIG, CPU, check_frozen_training, noise_batches, with_stage
from torch.nn.functional import cross_entropy

from brain_dist.config import ModelConfig
from brain_dist.errors import leave
from brain_dist.networks.create import create_network
from brain_dist.ranks.group import process_group
from brain_dist.ranks.world import World, discover
from brain_dist.training.engine import Engine
from brain_dist.training.optim import create_optimizer

BATCHNORM = ModelConfig(name="test_efficientnet")


def new_network(config: ModelConfig) -> Any:
    return create_network(config, 4, seed=0)


def check_running_statistics_are_averaged(world: World) -> None:
    config = dataclasses.replace(
        CONFIG,
        model=BATCHNORM,
        optim=dataclasses.replace(CONFIG.optim, ema=0.9),
        train=dataclasses.replace(CONFIG.train, global_batch=16),
    )
    engine = Engine(config, new_network(config.model), world, CPU)
    assert engine.ema is not None
    states = (engine.module.state_dict(), engine.ema.state)
    statistics = [value for state in states for name, value in state.items() if "running" in name]
    assert statistics
    for value in statistics:
        value.fill_(1.0 + 2 * world.rank)  # 1 on one rank, 3 on the other
    engine.average_statistics()
    assert all(torch.all(value == 2.0) for value in statistics), (world.rank, statistics[0])


def check_synchronised_batchnorm_equals_the_whole_batch(world: World) -> None:
    """12 images a step: 6 on each of two ranks, or 12 in plain PyTorch."""
    whole, shares = noise_batches(24, CPU, micro_batch=12), noise_batches(24, CPU, world=world, micro_batch=6)
    errors = {}
    for synchronised in (True, False):
        model = dataclasses.replace(BATCHNORM, sync_batchnorm=synchronised)
        engine = Engine(dataclasses.replace(with_stage(1, micro_batch=6), model=model), new_network(model), world, CPU)
        plain = new_network(BATCHNORM)
        optimizer = create_optimizer(CONFIG.optim, plain)
        for step in range(2):
            share = engine.step(shares[step : step + 1], lr=1e-3)
            dist.all_reduce(share)
            loss = cross_entropy(plain(engine.normalize(whole[step].image)), whole[step].label, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
            optimizer.step()
        state, reference = engine.module.state_dict(), plain.state_dict()
        assert state.keys() == reference.keys()
        difference = max(
            float((state[name] - value).abs().max()) for name, value in reference.items() if "running" in name
        )
        errors[synchronised] = difference, abs(float(share) - loss.item())
    print("errors of the running statistics and of the loss of the second step:", errors)
    assert max(errors[True]) < 1e-3, errors
    assert min(errors[False]) > 1e-2, errors


def check_compiled_network_equals_eager(world: World, zero_stage: int) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    batches, losses = noise_batches(24, CPU, world=world, micro_batch=6), []
    for compiled in (False, True):
        model = ModelConfig(name="test_convnext", compile=compiled)
        config = dataclasses.replace(with_stage(zero_stage, micro_batch=6), model=model)
        engine = Engine(config, new_network(model), world, CPU)
        losses.append([float(engine.step(batches[s : s + 1], lr=1e-2)) for s in range(2)])
        with engine.evaluating() as network:
            losses[-1].append(float(network(engine.normalize(batches[0].image)).sum()))
        names = engine.weights().keys()
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == int(compiled)
    assert all(abs(a - b) < 1e-3 for a, b in zip(*losses, strict=True)), losses
    assert not world.is_main or names == new_network(model).state_dict().keys()


def check_arithmetic(world: World) -> None:
    check_running_statistics_are_averaged(world)
    check_synchronised_batchnorm_equals_the_whole_batch(world)
    for zero in (0, 1, 2, 3):
        check_frozen_training(world, CPU, zero)


def check_compiled_networks(world: World) -> None:
    # inductor, the default, takes a minute for C++; the graph, its backward and DeepSpeed's hooks are the same
    torch.nn.Module.compile = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")  # type: ignore
    for zero in (0, 1, 2):
        check_compiled_network_equals_eager(world, zero)


def main() -> int:
    world = discover()
    with process_group(world, CPU):
        {"arithmetic": check_arithmetic, "compiled": check_compiled_networks}[sys.argv[1]](world)
    print("all checks passed")
    return 0


leave(main)
