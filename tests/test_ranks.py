"""What two real ranks agree on: BatchNorm's statistics, in the weights and in their average."""

from __future__ import annotations

import sys

from conftest import ROOT, command

SCRIPT = """
import dataclasses, sys, torch
sys.path.insert(0, "tests")
from test_engine import CONFIG, CPU
from brain_dist import models
from brain_dist.config import ModelConfig
from brain_dist.dist import discover, process_group
from brain_dist.engine import Engine

world = discover()
config = dataclasses.replace(
    CONFIG,
    model=ModelConfig(name="test_efficientnet"),
    optim=dataclasses.replace(CONFIG.optim, ema=0.9),
    train=dataclasses.replace(CONFIG.train, global_batch=16),
)
with process_group(world, CPU):
    engine = Engine(config, models.create(config.model, 4, seed=0), world, CPU)
    for state in (engine.module.state_dict(), engine.ema.state):
        for name, value in state.items():
            if name.endswith(("running_mean", "running_var")):
                value.fill_(1.0 + 2 * world.rank)  # 1 on one rank, 3 on the other
    engine.agree_on_statistics()
    for state in (engine.module.state_dict(), engine.ema.state):
        found = [v for n, v in state.items() if n.endswith(("running_mean", "running_var"))]
        assert found and all(torch.all(v == 2.0) for v in found), (world.rank, found[0])
print("agreed")
"""


def test_batchnorm_statistics_are_averaged_over_the_ranks() -> None:
    starter = (
        "import subprocess, sys\n"
        "from launch.local import environment, free_port\n"
        "port = free_port()\n"
        f"words = [sys.executable, '-c', {SCRIPT!r}]\n"
        "ranks = [subprocess.Popen(words, env=environment(rank, 2, port)) for rank in range(2)]\n"
        "sys.exit(max(rank.wait() for rank in ranks))"
    )
    done = command([sys.executable, "-c", starter], PYTHONPATH=str(ROOT))
    assert done.out.count("agreed") == 2
