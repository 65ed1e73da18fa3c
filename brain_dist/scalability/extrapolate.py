"""Predicted curves: the fitted cost model applied to more nodes of a described machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from brain_dist.errors import UserError
from brain_dist.scalability import traffic
from brain_dist.scalability.cost import CostModel, Link, MeasuredStep, StepCase
from brain_dist.scalability.machines import Machine
from brain_dist.scalability.results import KINDS
from brain_dist.scalability.traffic import Traffic

CASE_COLUMNS = ("model", "size", "precision", "zero_stage", "ranks", "micro_batch", "micros", "parameters", "device",
                "loader", "cores", "threads")  # fmt: skip
PARTS = ("forward", "backward", "optimiser", "communication", "other")


def step_case(row: Mapping[str, Any]) -> StepCase:
    """The configuration of a row of scaling.parquet; its nodes are the machines that the ranks really ran on."""
    sent = {kind: (row[f"{kind}_messages"], row[f"{kind}_bytes"]) for kind in KINDS}
    return StepCase(**{name: row[name] for name in CASE_COLUMNS}, nodes=row["hosts"], traffic=Traffic(**sent))


def measured_step(row: Mapping[str, Any]) -> MeasuredStep:
    """The measurement in a row of scaling.parquet."""
    parts = {name: row[f"t_{name}"] for name in PARTS}
    return MeasuredStep(
        step_case(row), **parts, step=row["step"], loader=row["alone_loader"], all_reduce=row["alone_communication"]
    )


@dataclass(frozen=True)
class PredictedCurve:
    """One configuration to extrapolate.

    Attributes:
        case: The measured case with the most ranks.
        mode: weak or strong.
        flops: FLOP per image, forward and backward.
    """

    case: StepCase
    mode: str
    flops: float

    def name(self, case: StepCase) -> str:
        """Title that distinguishes this curve from every other one; ``case`` is the curve on some number of nodes."""
        if self.mode == "strong":
            batch = f"{self.case.images * self.case.ranks} images"
        else:
            batch = f"{f'{case.micros} × ' if case.micros > 1 else ''}{case.micro_batch} images a rank"
        return f"{case.model} {case.size}² {case.precision}, ZeRO {case.zero_stage}, {self.mode}, {batch}"

    def on(self, machine: Machine, nodes: int, micro_batch: int | None) -> StepCase | None:
        """The case on ``nodes`` nodes of a machine.

        Weak scaling keeps the images per rank, with ``micro_batch`` instead of the measured one if given. Strong
        scaling keeps the global batch, with the largest possible micro-batch as in ``scaling run``.

        Returns:
            None if the global batch is not divisible among the ranks.
        """
        case, ranks = self.case, nodes * machine.ranks_per_node
        size, micros = micro_batch or case.micro_batch, case.micros
        if self.mode == "strong":
            images, remainder = divmod(case.images * case.ranks, ranks)
            if remainder or not images:
                return None
            size = max(count for count in range(1, case.micro_batch + 1) if images % count == 0)
            micros = images // size
        case = case.on(ranks=ranks, nodes=nodes, micro_batch=size, micros=micros)
        return replace(case, device=machine.device, cores=_cores(machine, self.case))


def predicted_curves(rows: Sequence[Mapping[str, Any]]) -> list[PredictedCurve]:
    """One curve per network, stage, mode and batch size, from the row with the most ranks."""
    curves: dict[tuple[Any, ...], PredictedCurve] = {}
    for row in rows:
        batch: tuple[int, ...] = (row["micro_batch"], row["micros"])
        if row["mode"] == "strong":
            batch = (row["micro_batch"] * row["micros"] * row["ranks"],)
        case = step_case(row)
        key = (*case.key, case.loader, case.device, row["mode"], *batch)
        if key not in curves or curves[key].case.ranks < case.ranks:
            curves[key] = PredictedCurve(case, row["mode"], row["flops_per_image"])
    return list(curves.values())


def model_on(machine: Machine, fitted: CostModel, curve: PredictedCurve) -> CostModel:
    """The cost model of a machine: what its file describes, the rest as fitted.

    Raises:
        UserError: a link is neither described nor measured.
    """
    case, key = curve.case, curve.case.key
    link = _link("link", machine, machine.link or fitted.link)
    network = _link("network", machine, machine.network or fitted.network)
    loader = dict(fitted.loader) if machine.compute is None else {}
    if machine.loader_images_per_s is not None:
        # The described rate is that of a whole node, however many ranks share its cores
        node = replace(case, device=machine.device, cores=_cores(machine, case), ranks=machine.ranks_per_node, nodes=1)
        seconds = machine.ranks_per_node / machine.loader_images_per_s / node.cpu_factor
        loader = {(key, case.loader): seconds}
    if machine.compute is None:
        return CostModel({key: fitted.compute[key]}, link, network, fitted.waiting, loader)
    backward_share = fitted.compute[key].backward_share
    compute = machine.compute.compute(case.model, case.precision, curve.flops, backward_share)
    return CostModel({key: compute}, link, network, loader=loader)


def _link(name: str, machine: Machine, link: Link | None) -> Link:
    if link is None:
        required = "several machines" if name == "network" else "two or more ranks on a machine"
        raise UserError(
            f"machine {machine.name}: '{name}: measured', but the given measurements did not use it; describe it in"
            f" the machine's file, or measure on {required}"
        )
    return link


def _cores(machine: Machine, case: StepCase) -> int | None:
    return machine.cores if machine.compute is not None else machine.cores or case.cores


def extrapolate(
    curves: Sequence[PredictedCurve],
    fitted: CostModel,
    machine: Machine,
    nodes: Sequence[int],
    micro_batch: int | None,
    buckets: Callable[[StepCase], int],
) -> list[dict[str, Any]]:
    """One row of predict.parquet per curve and number of nodes.

    Args:
        curves: What to extrapolate.
        fitted: The fitted cost model.
        machine: The machine to predict.
        nodes: Numbers of nodes.
        micro_batch: Micro-batch of weak scaling; None: as measured.
        buckets: Number of gradient buckets of a case that overlap with backward.

    Raises:
        UserError: no global batch is divisible among the ranks, or the machine lacks a description.
    """
    rows = []
    for curve in curves:
        model = model_on(machine, fitted, curve)
        baseline: tuple[float, int] | None = None  # images/s and nodes of the smallest possible number of nodes
        for count in sorted({1, *nodes}):
            case = curve.on(machine, count, micro_batch)
            if case is None:
                continue
            row = _row(curve, case, model, machine, buckets(case))
            baseline = baseline or (row["images_per_s"], count)
            row["speedup"] = row["images_per_s"] / baseline[0]
            row["efficiency"] = row["speedup"] / count * baseline[1]
            if count in nodes:
                rows.append(row)
    if not rows:
        raise UserError(
            f"--nodes {', '.join(map(str, nodes))} of {machine.name}: no measured global batch divides among the ranks"
            " so that every rank gets an image; give other numbers"
        )
    return rows


def _row(curve: PredictedCurve, case: StepCase, model: CostModel, machine: Machine, buckets: int) -> dict[str, Any]:
    """Columns of predict.parquet, with speed-up and efficiency still empty."""
    parts = model.parts(case, buckets=buckets)
    master_weights = case.zero_stage > 0 or traffic.BYTES[case.precision] == 2  # as DeepSpeed keeps them
    memory = traffic.zero_footprint(
        case.zero_stage, case.parameters, case.ranks, case.precision, master_weights=master_weights
    )
    images = case.images * case.ranks
    return {
        "curve": curve.name(case), "machine": machine.name, "model": case.model, "size": case.size,
        "precision": case.precision, "zero_stage": case.zero_stage, "mode": curve.mode, "loader": case.loader,
        "nodes": case.nodes, "ranks": case.ranks, "global_batch": images, "micro_batch": case.micro_batch,
        "micros": case.micros, "images_per_s": images / parts.step, "step": parts.step, "speedup": 0.0,
        "efficiency": 0.0, "compute": parts.compute, "communication": parts.communication, "exposed": parts.exposed,
        "waiting": parts.waiting, "optimiser": parts.optimiser, "other": parts.other, "alone_loader": parts.loader,
        "memory_states": memory.weights + memory.gradients + memory.optimiser, "source": machine.source,
    }  # fmt: skip
