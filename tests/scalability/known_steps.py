"""Steps that a cost model with known coefficients takes, for the tests of this folder."""

from __future__ import annotations

import random
from dataclasses import replace

from brain_dist.scalability.cost import Compute, CostModel, Link, MeasuredStep, StepCase
from brain_dist.scalability.traffic import Traffic

MILLION = 1_000_000
# 10 ms per micro-batch and 2 ms per image, two thirds of it backward; 3 ns per parameter and 1 ms; 0.5 ms
COMPUTE = Compute(fixed=0.010, per_image=0.002, backward_share=2 / 3, per_parameter=3e-9, per_step=0.001, other=0.0005)
ALPHA, BETA = 150e-6, 40e6


def case(ranks: int = 1, *, nodes: int = 1, stage: int = 0, micro_batch: int = 8, micros: int = 2) -> StepCase:
    """A network of a million parameters in fp32, on nodes of eight cores."""
    traffic = Traffic.expected(stage, micros, MILLION, "fp32") if ranks > 1 else Traffic()
    count, size = traffic.gathered
    traffic = replace(traffic, gathered=(3 * count, size))  # short messages separate α from β
    return StepCase(
        model="a", size=64, precision="fp32", zero_stage=stage, ranks=ranks, nodes=nodes, micro_batch=micro_batch,
        micros=micros, parameters=MILLION, traffic=traffic, cores=8, threads=1,
    )  # fmt: skip


def true_model(**links: Link | None) -> CostModel:
    """The model that the fit must recover, with the same compute times at every stage."""
    keys = [case(stage=stage).key for stage in range(4)]
    known = {"link": Link(ALPHA, BETA), "network": Link(10 * ALPHA, BETA / 10), **links}
    loader = {(key, "synthetic"): 1e-4 for key in keys}
    return CostModel(dict.fromkeys(keys, COMPUTE), **known, waiting=0.05, loader=loader)  # type: ignore[arg-type]


def measure(of: StepCase, *, noise: float = 0.0, seed: int = 0) -> MeasuredStep:
    """The step of the true model, with each part off by a random share of at most ``noise``."""
    rng = random.Random(f"{of}{seed}")
    parts = true_model().parts(of)
    factor = {name: 1 + rng.uniform(-noise, noise) for name in ("forward", "backward", "optimiser", "link", "other")}
    forward, backward = parts.compute * factor["forward"] / 3, parts.compute * factor["backward"] * 2 / 3
    communication = (parts.communication + parts.waiting) * factor["link"]
    optimiser, other = parts.optimiser * factor["optimiser"], parts.other * factor["other"]
    link = true_model().network if of.nodes > 1 else true_model().link
    assert link is not None
    all_reduce = link.seconds(2 * (of.ranks - 1), 2 * (of.ranks - 1) / of.ranks * 4 * MILLION)
    step = max(parts.loader, forward + backward + communication + optimiser + other)
    return MeasuredStep(of, forward, backward, optimiser, communication, other, step, loader=parts.loader,
                        all_reduce=all_reduce if of.ranks > 1 else None)  # fmt: skip
