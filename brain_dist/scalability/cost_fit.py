"""Fit of :mod:`brain_dist.scalability.cost` to measured steps, and its error on measurements that were held back. Pure.

Communication measured inside a step includes the wait for the slower rank, which no property of the network explains.
So α, β and w are fitted together. An all-reduce measured by itself, which starts on all ranks at once, adds an equation
without w.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brain_dist.scalability.cost import Compute, CostModel, Key, Link, MeasuredStep, StepCase
from brain_dist.scalability.traffic import BYTES, ring_bytes, ring_hops


def fit(steps: Sequence[MeasuredStep]) -> CostModel:
    """Fit all coefficients by non-negative least squares of the relative error.

    If every step has the same micro-batch, the cost per micro-batch cannot be separated from the cost per image, and
    is attributed to the images. The same holds for the optimiser if every step has the same share of parameters.

    Raises:
        ValueError: ``steps`` is empty.
    """
    if not steps:
        raise ValueError("no measured steps to fit")
    groups: dict[Key, list[MeasuredStep]] = defaultdict(list)
    loader_times: dict[tuple[Key, str], list[float]] = defaultdict(list)
    for step in steps:
        case = step.case
        groups[case.key].append(step)
        if step.loader is not None:
            loader_times[case.key, case.loader].append(step.loader / (case.images * case.cpu_factor))
    link, network, waiting = _fit_links([step for step in steps if step.case.ranks > 1])
    return CostModel(
        compute={key: _fit_compute(group) for key, group in groups.items()},
        link=link,
        network=network,
        waiting=waiting,
        loader={key: statistics.median(seconds) for key, seconds in loader_times.items()},
    )


def fit_latency(messages: Sequence[tuple[float, float, float]]) -> float:
    """Fit α ≥ 0 by least squares of the relative error, if β is known.

    Args:
        messages: (hops, wire bytes / β [s], measured time [s]) of each message.
    """
    hops, wire, seconds = np.array(messages, dtype=float).T
    return max(0.0, float((hops * (seconds - wire) / seconds**2).sum() / (hops**2 / seconds**2).sum()))


def nnls(columns: Sequence[Any], target: Any) -> list[float]:
    """Non-negative x that minimises the relative error of ``columns`` · x with respect to ``target``.

    Columns are scaled to the same magnitude first, because seconds per hop and seconds per byte differ by nine orders.
    """
    from scipy.optimize import nnls as solve

    target = np.asarray(target, dtype=float)
    weight = 1 / np.maximum(target, 1e-3 * max(float(target.max(initial=0.0)), 1e-12))
    matrix = np.column_stack([np.asarray(column, dtype=float) for column in columns]) * weight[:, None]
    scale = np.abs(matrix).max(axis=0)
    scale[scale == 0] = 1.0
    solution, _ = solve(matrix / scale, target * weight)
    return [float(value) for value in solution / scale]


def _fit_compute(steps: Sequence[MeasuredStep]) -> Compute:
    factor = np.array([step.case.cpu_factor for step in steps])
    micros = np.array([step.case.micros for step in steps]) * factor
    micro_batches = np.array([step.case.micro_batch for step in steps])
    parameters = np.array([step.case.stepped_parameters for step in steps])
    compute = np.array([step.forward + step.backward for step in steps])
    fixed, per_image = _fit_line(micros, micro_batches, compute)
    per_step, per_parameter = _fit_line(factor, parameters, np.array([step.optimiser for step in steps]))
    return Compute(
        fixed=fixed,
        per_image=per_image,
        backward_share=float(sum(step.backward for step in steps) / max(compute.sum(), 1e-12)),
        per_parameter=per_parameter,
        per_step=per_step,
        other=float(np.median([max(0.0, step.other) for step in steps] / micros)),
    )


def _fit_line(scale: np.ndarray, sizes: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Non-negative (constant, slope) of ``target`` ≈ scale · (constant + slope · size); one size has a slope only."""
    if len(set(sizes.tolist())) > 1:
        constant, slope = nnls([scale, scale * sizes], target)
        return constant, slope
    return 0.0, nnls([scale * sizes], target)[0]


def _fit_links(steps: Sequence[MeasuredStep]) -> tuple[Link | None, Link | None, float]:
    """The link inside a node, the network between nodes, and w.

    The unknowns of an equation are α and 1/β of the link, α and 1/β of the network, and w.
    """
    if not steps:
        return None, None, 0.0
    equations: list[list[float]] = []
    target: list[float] = []
    for step in steps:
        case = step.case
        before, after = ([0.0, 0.0], []) if case.nodes > 1 else ([], [0.0, 0.0])
        equations.append([*before, case.hops, case.wire_bytes, *after, step.forward + step.backward])
        target.append(step.communication)
        if step.all_reduce:
            hops = ring_hops("all_reduce", case.ranks)
            size = ring_bytes("all_reduce", BYTES[case.precision] * case.parameters, case.ranks)
            equations.append([*before, hops, size, *after, 0.0])
            target.append(step.all_reduce)
    *coefficients, waiting = nnls(list(np.array(equations).T), np.array(target))
    links: list[Link | None] = []
    for first in (0, 2):
        latency, seconds_per_byte = coefficients[first : first + 2]
        measured = any(equation[first + 1] for equation in equations)
        bandwidth = 1 / seconds_per_byte if seconds_per_byte else math.inf
        links.append(Link(latency, bandwidth) if measured else None)
    return links[0], links[1], waiting


@dataclass(frozen=True)
class HeldBack:
    """Predictions of step times that the fit did not use.

    Attributes:
        method: How the held-back measurements were selected, for the report.
        predictions: (measurement, predicted step [s]).
        unpredictable: Number of held-back measurements for which the others do not determine the coefficients.
    """

    method: str
    predictions: tuple[tuple[MeasuredStep, float], ...]
    unpredictable: int = 0

    @property
    def errors(self) -> list[float]:
        """Relative errors |predicted − measured| / measured."""
        return [abs(seconds - step.step) / step.step for step, seconds in self.predictions]


def held_back(steps: Sequence[MeasuredStep], buckets: Callable[[StepCase], int] = lambda case: 0) -> HeldBack:
    """Fit without some of the measurements, and predict those.

    With three or more numbers of ranks, the measurements on most ranks are held back: a forecast. Otherwise each
    configuration is held back in turn, with its repeats.

    Args:
        steps: Measurements.
        buckets: Number of gradient buckets of a case that overlap with backward.
    """
    rank_counts = sorted({step.case.ranks for step in steps})
    if len(rank_counts) >= 3:
        method = f"the largest number of ranks, {rank_counts[-1]}, held back"
        parts = [[step for step in steps if step.case.ranks == rank_counts[-1]]]
    else:
        method = "each configuration held back in turn"
        parts = [[step for step in steps if step.case == case] for case in dict.fromkeys(step.case for step in steps)]
    predictions: list[tuple[MeasuredStep, float]] = []
    unpredictable = 0
    for part in parts:
        rest = [step for step in steps if step not in part]
        if not rest:
            unpredictable += len(part)
            continue
        model = fit(rest)
        for step in part:
            try:
                predictions.append((step, model.parts(step.case, buckets=buckets(step.case)).step))
            except KeyError:
                unpredictable += 1
    return HeldBack(method, tuple(predictions), unpredictable)
