"""What two real ranks agree on: BatchNorm's statistics, frozen features, compiled networks, all in one start."""

from __future__ import annotations

import sys

from conftest import ROOT, command

SCRIPT = """
import dataclasses, functools, sys, torch
sys.path.insert(0, "tests")
from test_engine import CONFIG, CPU, data, freeze_then_free, stage
from torch.nn.functional import cross_entropy
from brain_dist import models, optim
from brain_dist.config import ModelConfig
from brain_dist.dist import discover, process_group
from brain_dist.engine import Engine
from brain_dist.errors import leave

world = discover()
bn = ModelConfig(name="test_efficientnet")


def new(model):
    return models.create(model, 4, seed=0)


def statistics_are_averaged():
    config = dataclasses.replace(
        CONFIG,
        model=bn,
        optim=dataclasses.replace(CONFIG.optim, ema=0.9),
        train=dataclasses.replace(CONFIG.train, global_batch=16),
    )
    engine = Engine(config, new(config.model), world, CPU)
    for state in (engine.module.state_dict(), engine.ema.state):
        for name, value in state.items():
            if name.endswith(("running_mean", "running_var")):
                value.fill_(1.0 + 2 * world.rank)  # 1 on one rank, 3 on the other
    engine.agree_on_statistics()
    for state in (engine.module.state_dict(), engine.ema.state):
        found = [v for n, v in state.items() if n.endswith(("running_mean", "running_var"))]
        assert found and all(torch.all(v == 2.0) for v in found), (world.rank, found[0])


def two_synchronised_ranks_are_one_with_the_whole_batch():
    # 12 images a step: 6 on each rank, or 12 in plain PyTorch
    whole, mine = data(24, micro_batch=12), data(24, world=world, micro_batch=6)
    far = {}
    for synchronised in (True, False):
        model = dataclasses.replace(bn, sync_batchnorm=synchronised)
        config = dataclasses.replace(stage(1, micro_batch=6), model=model)
        engine = Engine(config, new(model), world, CPU)
        plain = new(bn)
        optimiser = optim.create(CONFIG.optim, plain)
        for step in range(2):
            share = engine.step(mine[step : step + 1], lr=1e-3)
            torch.distributed.all_reduce(share)
            loss = cross_entropy(plain(engine.normalize(whole[step].image)), whole[step].label, label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            for group in optimiser.param_groups:
                group["lr"] = 1e-3
            optimiser.step()
        own, reference = engine.module.state_dict(), plain.state_dict()
        assert own.keys() == reference.keys()
        off = max(float((own[name] - value).abs().max()) for name, value in reference.items() if "running" in name)
        far[synchronised] = off, abs(float(share) - loss.item())
    print("running statistics and loss of the second step are off by", far)
    assert max(far[True]) < 1e-3, far
    assert min(far[False]) > 1e-2, far


def compiled_is_the_same_network():
    # inductor, the default, would spend a minute on C++; the graph, its backward and DeepSpeed's hooks are the same
    torch.nn.Module.compile = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    batches, losses = data(24, world=world, micro_batch=6), []
    for compiled in (False, True):
        model = ModelConfig(name="test_convnext", compile=compiled)
        engine = Engine(dataclasses.replace(stage(2, micro_batch=6), model=model), new(model), world, CPU)
        losses.append([float(engine.step(batches[s : s + 1], lr=1e-2)) for s in range(2)])
        with engine.evaluating() as judged:
            losses[-1].append(float(judged(engine.normalize(batches[0].image)).sum()))
        names = engine.weights().keys()
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) is compiled
    assert all(abs(a - b) < 1e-3 for a, b in zip(*losses)), losses
    assert not world.is_main or names == new(model).state_dict().keys()


def main():
    with process_group(world, CPU):
        agree()
    print("agreed")
    return 0


def agree():
    statistics_are_averaged()
    two_synchronised_ranks_are_one_with_the_whole_batch()
    for zero in (0, 1, 2, 3):
        freeze_then_free(world, zero)
    compiled_is_the_same_network()


leave(main)
"""


def test_two_ranks_agree_with_one() -> None:
    """BatchNorm averaged and synchronised, a head trained alone at first under each ZeRO stage, a compiled network."""
    starter = (
        "import sys\n"
        "from launch.local import Part, start\n"
        f"ranks = start([sys.executable, '-c', {SCRIPT!r}], Part(2))\n"
        "sys.exit(any([rank.wait() for rank in ranks]))"
    )
    done = command([sys.executable, "-c", starter], PYTHONPATH=str(ROOT))
    assert done.out.count("agreed") == 2, done.out
