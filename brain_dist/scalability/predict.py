"""Predict a training step on more nodes: ``python -m brain_dist.scaling predict OUT [OUT …] --machine FILE``.

Fits the cost model of :mod:`brain_dist.scalability.cost` to what ``scaling run`` measured, says how far off it was on
measurements that were held back from it, and extrapolates to nodes of a described machine (configs/machines/).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from brain_dist.errors import UserError, leave
from brain_dist.scalability import cost, cost_fit, machines, results
from brain_dist.scalability.cost import Measured, Model, StepCase, Traffic
from brain_dist.scalability.machines import Machine
from brain_dist.scalability.predict_report import report

BUCKET = 5e8  # elements, DeepSpeed's default of reduce_bucket_size
NODES = "1,2,4,8,16,32,64"


@dataclass(frozen=True)
class PredictedCurve:
    """What is extrapolated: the measured row with the most ranks of one configuration, and its own numbers."""

    case: StepCase
    mode: str
    flops: float

    def name(self, grown: StepCase) -> str:
        """Told apart from every other curve; ``grown`` is the case on some number of nodes."""
        own = self.case
        batch = f"{own.images * own.ranks} images" if self.mode == "strong" else f"{grown.micro_batch} images a rank"
        if self.mode == "weak" and grown.micros > 1:
            batch = f"{grown.micros} × {batch}"
        return f"{own.model} {own.size}² {own.precision}, ZeRO {own.zero_stage}, {self.mode}, {batch}"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, read, fit, check, extrapolate, print, write."""
    options = argparse.ArgumentParser(prog="brain-dist scaling predict", description=__doc__.split("\n\n")[1])
    options.add_argument("measured", type=Path, nargs="+", metavar="OUT", help="folders of `scaling run`")
    options.add_argument("--machine", type=Path, required=True, metavar="FILE", help=f"see {machines.FOLDER}/")
    options.add_argument("--nodes", type=_numbers, default=_numbers(NODES), help=f"default: {NODES}")
    options.add_argument("--micro-batch", type=int, metavar="N", help="images a rank computes at once in weak scaling"
                         " (default: as measured)")  # fmt: skip
    options.add_argument("--deepspeed", type=Path, metavar="JSON", help="the run's train.deepspeed, for"
                         " overlap_comm and reduce_bucket_size (default: DeepSpeed's own)")  # fmt: skip
    options.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: the first OUT)")
    given = options.parse_args(argv)
    if given.micro_batch is not None and given.micro_batch < 1:
        raise UserError(f"--micro-batch {given.micro_batch}: needs at least 1")
    machine = machines.load(given.machine)
    overlap = _overlap(given.deepspeed)
    table = [row for folder in given.measured for row in results.read(folder / "scaling.parquet")]
    rows = [measured(row) for row in table]
    if machine.compute is None and any(row.case.device != machine.device for row in rows):
        raise UserError(
            f"{given.machine}: 'compute: measured' on a {machine.device}, but the rows were measured on a"
            f" {rows[0].case.device}; describe its compute, or measure there"
        )
    fitted = cost_fit.fit(rows)
    tested = cost_fit.held_back(rows)  # together, every collective was waited for: there was nothing to overlap
    found = extrapolate(curves(table), fitted, machine, given.nodes, given.micro_batch, overlap)
    report(found, rows, fitted, tested, machine, given.out or given.measured[0])
    return 0


def _numbers(words: str) -> list[int]:
    try:
        found = sorted({int(word) for word in words.split(",")})
    except ValueError:
        raise UserError(f"--nodes {words}: give whole numbers with commas between, as 1,2,4") from None
    if found[0] < 1:
        raise UserError(f"--nodes {words}: needs numbers of at least 1")
    return found


def _overlap(path: Path | None) -> Callable[[StepCase], int]:
    """Buckets that overlap with backward in a case, 0 where DeepSpeed is not asked to; its defaults without a file."""
    zero: Any = {}
    if path is not None:
        try:
            found = json.loads(path.read_text())
        except OSError as error:
            raise UserError(f"--deepspeed {path}: {error.strerror}; configs/deepspeed/ holds examples") from None
        except ValueError as error:
            raise UserError(f"--deepspeed {path} is not JSON: {error}") from None
        zero = found.get("zero_optimization", {}) if isinstance(found, dict) else None
        if not isinstance(zero, dict):
            raise UserError(f"--deepspeed {path}: 'zero_optimization' is no object")
    size = zero.get("reduce_bucket_size", BUCKET)
    if not isinstance(size, (int, float)) or size < 1:
        raise UserError(f"--deepspeed {path}: reduce_bucket_size={size!r} is no number of elements")

    def buckets(case: StepCase) -> int:
        on = zero.get("overlap_comm")
        asked = case.zero_stage == 3 if on is None else bool(on)  # DeepSpeed's default
        able = case.zero_stage > 0 and case.device == "cuda"  # a CPU has no second stream to send on
        return math.ceil(case.parameters / size) if asked and able else 0

    return buckets


def case_of(row: dict[str, Any]) -> StepCase:
    """The configuration of a row. Nodes are the machines that its ranks really ran on."""
    names = ("model", "size", "precision", "zero_stage", "ranks", "micro_batch", "micros", "parameters", "device",
             "loader", "cores", "threads")  # fmt: skip
    sent = {kind: (row[f"{kind}_messages"], row[f"{kind}_bytes"]) for kind in results.KINDS}
    return StepCase(**{name: row[name] for name in names}, nodes=row["hosts"], traffic=Traffic(**sent))


def measured(row: dict[str, Any]) -> Measured:
    """A row as the cost model wants it."""
    parts = {name: row[f"t_{name}"] for name in ("forward", "backward", "optimiser", "communication", "other")}
    return Measured(case_of(row), **parts, step=row["step"],
                    loader=row["alone_loader"], all_reduce=row["alone_communication"])  # fmt: skip


def curves(table: Sequence[dict[str, Any]]) -> list[PredictedCurve]:
    """One for each network, stage, mode and batch a rank; of its numbers of ranks the largest, the nearest to go on."""
    found: dict[tuple[Any, ...], PredictedCurve] = {}
    for row in table:
        each = (row["micro_batch"], row["micros"])
        batch = each if row["mode"] == "weak" else (row["micro_batch"] * row["micros"] * row["ranks"],)
        case = case_of(row)
        key = (*case.key, case.loader, case.device, row["mode"], *batch)
        if key not in found or found[key].case.ranks < case.ranks:
            found[key] = PredictedCurve(case, row["mode"], row["flops_per_image"])
    return list(found.values())


def model_on(machine: Machine, fitted: Model, curve: PredictedCurve) -> Model:
    """What the machine's file describes, and the rest as fitted."""
    case, key = curve.case, curve.case.key
    own = fitted.compute[key]
    loader = dict(fitted.loader) if machine.compute is None else {}
    if machine.loader is not None:
        there = replace(case, device=machine.device, cores=_cores(machine, case), ranks=machine.ranks_per_node, nodes=1)
        # what is described is what a node of that machine gives, however crowded it is
        loader = {(key, case.loader): machine.ranks_per_node / machine.loader / there.crowd}
    for name, known in (("link", machine.link or fitted.link), ("network", machine.network or fitted.network)):
        if known is None:
            raise UserError(
                f"machine {machine.name}: '{name}: measured', but no given row went over such wires; describe it, or"
                f" measure with {'several machines' if name == 'network' else 'two or more ranks on a machine'}"
            )
    return Model(
        compute={key: own if machine.compute is None else
                 machine.compute.compute(case.model, case.precision, curve.flops, own.backward)},
        link=machine.link or fitted.link,
        network=machine.network or fitted.network,
        waiting=fitted.waiting if machine.compute is None else 0.0,
        loader=loader,
    )  # fmt: skip


def extrapolate(
    found: Sequence[PredictedCurve],
    fitted: Model,
    machine: Machine,
    nodes: Sequence[int],
    micro_batch: int | None,
    overlap: Callable[[StepCase], int],
) -> list[dict[str, Any]]:
    """A row for each curve and number of nodes that its global batch divides among."""
    rows = []
    for curve in found:
        model, first = model_on(machine, fitted, curve), (0.0, 0)  # images/s and nodes
        for count in sorted({1, *nodes}):
            case = _grown(curve, machine, count, micro_batch)
            if case is None:
                continue
            parts = model.parts(case, buckets=overlap(case))
            rate = case.images * case.ranks / parts.step
            first = first if first[1] else (rate, count)
            held = cost.zero(case.zero_stage, case.parameters, case.ranks, case.precision, master=case.zero_stage > 0
                             or cost.BYTES[case.precision] == 2)  # fmt: skip
            if count in nodes:
                rows.append({
                    "curve": curve.name(case), "machine": machine.name, "model": case.model, "size": case.size,
                    "precision": case.precision, "zero_stage": case.zero_stage, "mode": curve.mode,
                    "loader": case.loader, "nodes": count, "ranks": case.ranks,
                    "global_batch": case.images * case.ranks, "micro_batch": case.micro_batch, "micros": case.micros,
                    "images_per_s": rate, "step": parts.step, "speedup": rate / first[0],
                    "efficiency": rate / first[0] / count * first[1], "compute": parts.compute,
                    "communication": parts.communication, "exposed": parts.exposed, "waiting": parts.waiting,
                    "optimiser": parts.optimiser, "other": parts.other, "alone_loader": parts.loader,
                    "memory_states": held.weights + held.gradients + held.optimiser, "source": machine.source,
                })  # fmt: skip
    if not rows:
        raise UserError(
            f"none of --nodes {', '.join(map(str, nodes))} of {machine.name} divides a measured global batch so that"
            " every rank gets an image; give others"
        )
    return rows


def _grown(curve: PredictedCurve, machine: Machine, nodes: int, micro_batch: int | None) -> StepCase | None:
    """The curve's case on that many nodes: as many images a rank, or, strong, as many in all; None if they can't."""
    case, ranks = curve.case, nodes * machine.ranks_per_node
    micro, micros = micro_batch or case.micro_batch, case.micros
    if curve.mode == "strong":
        each, left = divmod(case.images * case.ranks, ranks)
        if left or not each:
            return None
        micro = max(size for size in range(1, case.micro_batch + 1) if each % size == 0)  # as `scaling run` takes it
        micros = each // micro
    grown = case.on(ranks=ranks, nodes=nodes, micro_batch=micro, micros=micros)
    return replace(grown, device=machine.device, cores=_cores(machine, case), threads=case.threads)


def _cores(machine: Machine, case: StepCase) -> int | None:
    return machine.cores if machine.compute is not None else machine.cores or case.cores


if __name__ == "__main__":
    leave(main)
