"""``brain-dist scaling predict``: fit the cost model to measurements and extrapolate to other machines."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from brain_dist.common.commands import ArgumentParser
from brain_dist.errors import UserError
from brain_dist.scalability.cases import integers

BUCKET_ELEMENTS = 5e8  # DeepSpeed's default of reduce_bucket_size
NODES = "1,2,4,8,16,32,64"
DESCRIPTION = (
    "Fit a cost model of a training step to the results of `scaling run`, report its error on measurements that were"
    " held back, and extrapolate to nodes of a described machine (configs/machines/)."
)


def argument_parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    parser = ArgumentParser(prog="brain-dist scaling predict", description=DESCRIPTION)
    parser.add_argument("measured", type=Path, nargs="+", metavar="OUT", help="folders of `scaling run`")
    parser.add_argument("--machine", type=Path, required=True, metavar="FILE", help="see configs/machines/")
    parser.add_argument("--nodes", default=NODES, help=f"numbers of nodes (default: {NODES})")
    parser.add_argument("--micro-batch", type=int, metavar="N", help="micro-batch of a rank in weak scaling (default:"
                        " as measured)")  # fmt: skip
    parser.add_argument("--deepspeed", type=Path, metavar="JSON", help="train.deepspeed of the run, for overlap_comm"
                        " and reduce_bucket_size (default: DeepSpeed's defaults)")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the prediction (default: the first OUT)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Fit, check and extrapolate; print and write the prediction; return the exit code.

    Raises:
        UserError: an option, a measurement or the machine's description is invalid.
    """
    arguments = argument_parser().parse_args(argv)
    nodes = integers("--nodes", arguments.nodes, minimum=1)
    if arguments.micro_batch is not None and arguments.micro_batch < 1:
        raise UserError(f"--micro-batch {arguments.micro_batch}: must be ≥ 1")

    from brain_dist.scalability import cost_fit, results
    from brain_dist.scalability.extrapolate import extrapolate, measured_step, predicted_curves
    from brain_dist.scalability.machines import read_machine
    from brain_dist.scalability.predict_report import report

    machine = read_machine(arguments.machine)
    buckets = overlapping_buckets(arguments.deepspeed)
    rows = [row for folder in arguments.measured for row in results.read(folder / "scaling.parquet")]
    steps = [measured_step(row) for row in rows]
    devices = {step.case.device for step in steps}
    if machine.compute is None and devices != {machine.device}:
        raise UserError(
            f"{arguments.machine}: 'compute: measured' on a {machine.device}, but the rows were measured on a"
            f" {', '.join(sorted(devices - {machine.device}))}; describe its compute, or measure there"
        )
    fitted = cost_fit.fit(steps)
    predicted = extrapolate(predicted_curves(rows), fitted, machine, nodes, arguments.micro_batch, buckets)
    report(
        predicted, steps, fitted, cost_fit.held_back(steps, buckets), machine, arguments.out or arguments.measured[0]
    )
    return 0


def overlapping_buckets(path: Path | None) -> Callable[[Any], int]:
    """A function from a :class:`StepCase` to its number of gradient buckets that overlap with backward.

    Args:
        path: JSON file of DeepSpeed's settings; None: DeepSpeed's defaults.

    Raises:
        UserError: the file cannot be read or has invalid values.
    """
    settings = _zero_settings(path) if path else {}
    elements = settings.get("reduce_bucket_size", BUCKET_ELEMENTS)
    if not isinstance(elements, int | float) or elements < 1:
        raise UserError(f"--deepspeed {path}: reduce_bucket_size={elements!r}: must be a positive integer")

    def buckets(case: Any) -> int:
        overlap = settings.get("overlap_comm")
        if overlap is None:
            overlap = case.zero_stage == 3  # DeepSpeed's default
        possible = case.zero_stage > 0 and case.device == "cuda"  # a CPU has no second stream
        return math.ceil(case.parameters / elements) if overlap and possible else 0

    return buckets


def _zero_settings(path: Path) -> Mapping[str, Any]:
    try:
        settings = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"--deepspeed {path}: {error.strerror}; configs/deepspeed/ has examples") from None
    except ValueError as error:
        raise UserError(f"--deepspeed {path} is not valid JSON: {error}") from None
    zero = settings.get("zero_optimization", {}) if isinstance(settings, dict) else None
    if not isinstance(zero, dict):
        raise UserError(f"--deepspeed {path}: 'zero_optimization' must be an object")
    return zero
