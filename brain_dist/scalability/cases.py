"""The runs that a scaling experiment is made of. Pure: all of them are settled, or refused, before any starts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from brain_dist.config import Config
from brain_dist.errors import UserError
from brain_dist.stream.plan import accumulation

Mode = Literal["weak", "strong"]
MODES: tuple[Mode, ...] = ("weak", "strong")


@dataclass(frozen=True)
class Case:
    """One profile on ``nodes`` × ``ranks_per_node`` ranks; model, stage and batches are in its own ``config``."""

    mode: Mode
    nodes: int
    ranks_per_node: int
    repeat: int
    config: Config

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def name(self) -> str:
        return self.config.run.name


def plan(
    bases: Sequence[Config], *, nodes: Sequence[int], per_node: int, modes: Sequence[Mode], repeats: int
) -> list[Case]:
    """Every case, in the order in which they run.

    Repeats are outermost and every other one goes backwards, so that a machine that slowly gets faster or slower does
    it to all cases alike. ``train.global_batch`` is that of the fewest ranks. Weak scaling multiplies it with the
    ranks and keeps the micro-batch and the accumulation; strong scaling keeps it and takes the largest micro-batch up
    to ``train.micro_batch`` that fits.

    Raises:
        UserError: a global batch that some number of ranks does not divide.
    """
    ranks = [n * per_node for n in nodes]
    cases = []
    for repeat in range(repeats):
        turn = [(base, mode, n) for base in bases for mode in modes for n in sorted(nodes)]
        for base, mode, n in turn if repeat % 2 == 0 else reversed(turn):
            one = _weak(base, n * per_node, min(ranks)) if mode == "weak" else _strong(base, n * per_node, ranks)
            stage = one.train.zero_stage
            name = re.sub(r"[^\w.-]", "_", f"{mode}-{one.model.name}-zero{stage}-{n}x{per_node}-r{repeat}")
            named = replace(one, run=replace(one.run, name=name))
            cases.append(Case(mode, n, per_node, repeat, named))
    return cases


def _weak(base: Config, ranks: int, fewest: int) -> Config:
    micro = base.train.micro_batch
    micros = accumulation(base.train.global_batch, micro, fewest)
    return replace(base, train=replace(base.train, global_batch=micro * micros * ranks))


def _strong(base: Config, ranks: int, all_ranks: Sequence[int]) -> Config:
    batch, most = base.train.global_batch, base.train.micro_batch
    pairs = 2 if base.augment.mixup or base.augment.cutmix else 1  # they need an even micro-batch
    fits = [m for m in range(most, 0, -1) if batch % (m * ranks) == 0 and m % pairs == 0]
    if not fits:
        least = math.lcm(*all_ranks) * pairs
        raise UserError(
            f"train.global_batch={batch} does not divide into {'even ' if pairs == 2 else ''}micro-batches of at most"
            f" {most} on {ranks} ranks, which --mode strong needs; a multiple of {least} divides on all of"
            f" {', '.join(map(str, sorted(all_ranks)))} ranks, such as {max(1, round(batch / least)) * least}"
        )
    return replace(base, train=replace(base.train, micro_batch=fits[0]))
