"""The fit of :mod:`brain_dist.scalability.cost` to measured steps, and how far off it is where it did not look. Pure.

Communication that was measured inside a step includes waiting for the slower rank, which no network explains. So the
three unknowns α, β and w are fitted at once, and an all-reduce that was measured by itself, where the ranks come
together first, is a further equation, without w.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brain_dist.scalability.cost import BYTES, Compute, Key, Link, Measured, Model, StepCase, ring_bytes, ring_hops


def fit(rows: Sequence[Measured]) -> Model:
    """Non-negative least squares of every unknown, each row weighted by one over what was measured of it.

    Where every row has the same micro-batch, a fixed cost cannot be told from one an image, and all is put on the
    images; the same goes for the optimiser where every row has the same share of parameters.
    """
    if not rows:
        raise ValueError("no rows to fit")
    groups: dict[Key, list[Measured]] = {}
    loads: dict[tuple[Key, str], list[float]] = {}
    for row in rows:
        groups.setdefault(row.case.key, []).append(row)
        if row.loader is not None:
            seconds = row.loader / (row.case.images * row.case.crowd)
            loads.setdefault((row.case.key, row.case.loader), []).append(seconds)
    compute = {key: _compute(group) for key, group in groups.items()}
    link, network, waiting = _wires([row for row in rows if row.case.ranks > 1])
    return Model(compute, link, network, waiting, {key: statistics.median(each) for key, each in loads.items()})


def _compute(rows: Sequence[Measured]) -> Compute:
    crowd = np.array([row.case.crowd for row in rows])
    micros = np.array([row.case.micros for row in rows]) * crowd
    both = np.array([row.forward + row.backward for row in rows])
    batches = [row.case.micro_batch for row in rows]
    fixed, per_image = _affine(micros, micros * np.array(batches), both, len(set(batches)) > 1)
    owned = [row.case.own_parameters for row in rows]
    stepped = np.array([row.optimiser for row in rows])
    per_step, per_parameter = _affine(crowd, crowd * np.array(owned), stepped, len(set(owned)) > 1)
    return Compute(
        fixed=fixed,
        per_image=per_image,
        backward=float(sum(row.backward for row in rows) / max(both.sum(), 1e-12)),
        per_parameter=per_parameter,
        per_step=per_step,
        other=float(np.median([max(0.0, row.other) for row in rows] / micros)),
    )


def latency(rows: Sequence[tuple[float, float, float]]) -> float:
    """α, at least 0, of rows (hops, wire bytes / β [s], measured [s]) whose β is known: least relative squares."""
    hops, wire, seconds = np.array(rows, dtype=float).T
    return max(0.0, float((hops * (seconds - wire) / seconds**2).sum() / (hops**2 / seconds**2).sum()))


def _affine(ones: Any, slopes: Any, target: Any, told_apart: bool) -> tuple[float, float]:
    """Non-negative (constant, slope) of ``target``; the constant is 0 where nothing tells it from the slope."""
    if told_apart:
        constant, slope = nnls([ones, slopes], target)
        return constant, slope
    return 0.0, nnls([slopes], target)[0]


def _wires(rows: Sequence[Measured]) -> tuple[Link | None, Link | None, float]:
    """α and β of the link inside a node and of the network between nodes, and the share of compute that waits."""
    equations: list[list[float]] = []
    target: list[float] = []
    for row in rows:
        case = row.case
        place = 2 * (case.nodes > 1)
        line = [0.0] * 5
        line[place : place + 2] = case.hops, case.wire
        line[4] = row.forward + row.backward
        equations.append(line)
        target.append(row.communication)
        if row.all_reduce:
            line = [0.0] * 5
            message = BYTES[case.precision] * case.parameters
            line[place] = ring_hops("all_reduce", case.ranks)
            line[place + 1] = ring_bytes("all_reduce", message, case.ranks)
            equations.append(line)
            target.append(row.all_reduce)
    if not rows:
        return None, None, 0.0
    found = nnls(list(np.array(equations).T), np.array(target))
    links = []
    for first in (0, 2):
        seen = any(line[first + 1] for line in equations)
        alpha, slowness = found[first : first + 2]
        links.append(Link(alpha, 1 / slowness if slowness else math.inf) if seen else None)
    return links[0], links[1], found[4]


def nnls(columns: Sequence[Any], target: Any) -> list[float]:
    """Non-negative x for which the columns times x are nearest to ``target``, in relative error.

    Columns are scaled to one size first, since seconds a hop and seconds a byte are nine orders apart.
    """
    from scipy.optimize import nnls as solve

    target = np.asarray(target, dtype=float)
    weight = 1 / np.maximum(target, 1e-3 * max(float(target.max(initial=0.0)), 1e-12))
    matrix = np.column_stack([np.asarray(column, dtype=float) for column in columns]) * weight[:, None]
    size = np.abs(matrix).max(axis=0)
    size[size == 0] = 1.0
    found, _ = solve(matrix / size, target * weight)
    return [float(value) for value in found / size]


# --- how far off ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldBack:
    """Relative errors of the step time of rows that the fit had not seen, and how they were chosen."""

    how: str
    rows: tuple[tuple[Measured, float], ...]  # the row and its predicted step [s]
    untold: int = 0  # held-back rows that nothing else told enough of to be predicted

    @property
    def errors(self) -> list[float]:
        """|predicted − measured| / measured."""
        return [abs(step - row.step) / row.step for row, step in self.rows]


def held_back(rows: Sequence[Measured], buckets: Callable[[StepCase], int] = lambda case: 0) -> HeldBack:
    """Fit without some of the rows, and predict those.

    With three or more numbers of ranks, the largest one is held back: a forecast. Otherwise each configuration is, in
    turn, with its repeats.
    """
    numbers = sorted({row.case.ranks for row in rows})
    if len(numbers) >= 3:
        parts = [[row for row in rows if row.case.ranks == numbers[-1]]]
        how = f"the largest number of ranks, {numbers[-1]}, held back"
    else:
        parts = [[row for row in rows if row.case == case] for case in dict.fromkeys(row.case for row in rows)]
        how = "each configuration held back in turn"
    told: list[tuple[Measured, float]] = []
    untold = 0
    for part in parts:
        rest = [row for row in rows if row not in part]
        if not rest:
            untold += len(part)
            continue
        model = fit(rest)
        for row in part:
            try:
                told.append((row, model.parts(row.case, buckets=buckets(row.case)).step))
            except KeyError:
                untold += 1
    return HeldBack(how, tuple(told), untold)
