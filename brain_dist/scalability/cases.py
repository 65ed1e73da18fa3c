"""The measurements of a scaling experiment. Pure: all cases are checked before the first one starts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from brain_dist.common.board import Board
from brain_dist.config import Config
from brain_dist.errors import UserError
from brain_dist.stream.plan import accumulation_steps

Mode = Literal["weak", "strong"]
MODES: tuple[Mode, ...] = ("weak", "strong")


@dataclass(frozen=True)
class Case:
    """One ``brain-dist profile`` run of an experiment.

    Attributes:
        mode: weak: the global batch grows with the ranks; strong: it is constant.
        nodes: Number of nodes.
        ranks_per_node: Number of ranks of a node.
        repeat: Number of the repeat, from 0.
        config: Settings of the run, with the batch sizes of this case.
    """

    mode: Mode
    nodes: int
    ranks_per_node: int
    repeat: int
    config: Config

    @property
    def ranks(self) -> int:
        """Number of ranks on all nodes."""
        return self.nodes * self.ranks_per_node

    @property
    def name(self) -> str:
        """Name of the case, which is its run's name."""
        return self.config.run.name


def plan(
    configs: Sequence[Config], *, nodes: Sequence[int], ranks_per_node: int, modes: Sequence[Mode], repeats: int
) -> list[Case]:
    """All cases, in the order in which they run.

    Repeats are the outermost loop and every other repeat runs backwards, so that slow drift of the machine affects all
    cases alike. ``train.global_batch`` is that of the smallest number of ranks. Weak scaling multiplies it with the
    ranks and keeps the micro-batch and the accumulation. Strong scaling keeps it and takes the largest possible
    micro-batch up to ``train.micro_batch``.

    Raises:
        UserError: a global batch is not divisible among some number of ranks.
    """
    all_ranks = [count * ranks_per_node for count in nodes]
    cases = []
    for repeat in range(repeats):
        order = [(config, mode, count) for config in configs for mode in modes for count in sorted(nodes)]
        for base, mode, count in order if repeat % 2 == 0 else reversed(order):
            ranks = count * ranks_per_node
            config = _weak(base, ranks, min(all_ranks)) if mode == "weak" else _strong(base, ranks, all_ranks)
            network, stage = config.model.name, config.train.zero_stage
            name = re.sub(r"[^\w.-]", "_", f"{mode}-{network}-zero{stage}-{count}x{ranks_per_node}-r{repeat}")
            named = replace(config, run=replace(config.run, name=name))
            cases.append(Case(mode, count, ranks_per_node, repeat, named))
    return cases


def _weak(config: Config, ranks: int, fewest_ranks: int) -> Config:
    micro_batch = config.train.micro_batch
    micros = accumulation_steps(config.train.global_batch, micro_batch, fewest_ranks)
    return replace(config, train=replace(config.train, global_batch=micro_batch * micros * ranks))


def _strong(config: Config, ranks: int, all_ranks: Sequence[int]) -> Config:
    global_batch, largest = config.train.global_batch, config.train.micro_batch
    factor = 2 if config.augment.mixup or config.augment.cutmix else 1  # mixing needs an even micro-batch
    sizes = [size for size in range(largest, 0, -1) if global_batch % (size * ranks) == 0 and size % factor == 0]
    if not sizes:
        multiple = math.lcm(*all_ranks) * factor
        raise UserError(
            f"train.global_batch={global_batch} does not divide into {'even ' if factor == 2 else ''}micro-batches of"
            f" at most {largest} on {ranks} ranks, as --mode strong requires; a multiple of {multiple} divides on"
            f" {', '.join(map(str, sorted(all_ranks)))} ranks, such as"
            f" {max(1, round(global_batch / multiple)) * multiple}"
        )
    return replace(config, train=replace(config.train, micro_batch=sizes[0]))


def case_board(cases: Sequence[Case]) -> Board:
    """The board of an experiment."""
    columns: dict[str, Literal["left", "right"]] = {"scaling": "left", "model": "left"}
    columns |= dict.fromkeys(("ZeRO", "nodes", "ranks", "batch", "repeat"), "right")
    rows = {}
    for case in cases:
        train = case.config.train
        numbers = (train.zero_stage, case.nodes, case.ranks, train.global_batch, case.repeat + 1)
        rows[case.name] = [case.mode, case.config.model.name, *map(str, numbers)]
    return Board(rows, columns, unit="case", result="rate")


def integers(option: str, text: str, *, minimum: int) -> list[int]:
    """Parse ``1,2,4`` into a sorted list without duplicates.

    Raises:
        UserError: ``text`` has another format or a value below ``minimum``; the message names ``option``.
    """
    try:
        values = sorted({int(word) for word in text.split(",")})
    except ValueError:
        raise UserError(f"{option} {text}: must be integers separated by commas, such as 1,2,4") from None
    if values[0] < minimum:
        raise UserError(f"{option} {text}: must be ≥ {minimum}")
    return values
