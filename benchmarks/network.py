"""The cost model's communication against networks of known bandwidth, and its bytes against the interface's counters.

``python -m benchmarks.network [--ranks 2,4] [--rates 50,100,200,500] [--stages 2,3]`` (root) gives each rank a network
namespace, limits its interface with tbf, and trains a small ConvNeXt on noise images. β is the known rate without
Ethernet and TCP headers, so only α is fitted, at every other rate; the error at the remaining rates is the check. A
collective ends on all ranks at once, so the last rank to arrive did not wait: the communication of a step is that of
the rank with the least of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.support import namespaces
from benchmarks.support.common import integers, training_shards
from brain_dist.scalability.cost_fit import fit_latency
from brain_dist.scalability.traffic import Traffic, ring_bytes, ring_hops


@dataclass(frozen=True)
class Row:
    """One kind of communication at one rate.

    Attributes:
        ranks: Number of ranks.
        stage: ZeRO stage of a training step; None: an all-reduce of all gradients by itself.
        rate: Limit of the interface [Mbit/s]; None: no limit.
        hops: Hops by the model.
        bytes: Bytes per rank by the model.
        counted: Bytes per rank by the interface's counter.
        seconds: Measured time.
    """

    ranks: int
    stage: int | None
    rate: float | None
    hops: float
    bytes: float
    counted: float
    seconds: float

    @property
    def wire_seconds(self) -> float:
        """Time of the model's bytes at the known bandwidth."""
        return self.bytes / (self.rate * 1e6 / 8 * namespaces.PAYLOAD) if self.rate else 0.0

    @property
    def name(self) -> str:
        return "all-reduce, alone" if self.stage is None else f"a step of ZeRO {self.stage}"


def argument_parser() -> argparse.ArgumentParser:
    """Options that ``benchmarks.zero`` shares."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=integers, default=[2, 4])
    parser.add_argument("--model", default="convnext_zepto_rms_ols")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8, help="images per rank")
    parser.add_argument("--steps", type=int, default=2)
    return parser


def main() -> None:
    """Measure, fit α, print both tables."""
    parser = argument_parser()
    parser.description = __doc__.split("\n\n")[0]
    parser.add_argument("--rates", type=integers, default=[50, 100, 200, 500], help="Mbit/s; unlimited comes last")
    parser.add_argument("--stages", type=integers, default=[2, 3])
    arguments = parser.parse_args()
    if missing := namespaces.missing_requirement():
        raise SystemExit(f"benchmarks.network {missing}")
    if len(arguments.rates) < 2:
        raise SystemExit("benchmarks.network: --rates must have two or more rates, to fit on half and check the others")
    rows: list[Row] = []
    for ranks in arguments.ranks:
        jobs = [
            create_job(arguments, ranks, stage=stage, rate=rate)
            for stage in arguments.stages
            for rate in [*arguments.rates, None]
        ]
        for result in measure(jobs, ranks):
            rows += result_rows(result, ranks)
    print(f"{arguments.model} {arguments.size}², fp32, batch {arguments.batch} a rank")
    fit_rates = sorted({row.rate for row in rows if row.rate})[::2]
    alpha = fit_latency([(row.hops, row.wire_seconds, row.seconds) for row in rows if row.rate in fit_rates])
    print(f"α {1e6 * alpha:.0f} µs a hop, fitted at {', '.join(f'{rate:g}' for rate in fit_rates)} Mbit/s; β known\n")
    rows = merge_repeats(rows)
    print_seconds(rows, alpha, fit_rates)
    print_bytes([row for row in rows if row.rate == arguments.rates[0]])


def create_job(
    arguments: argparse.Namespace, ranks: int, *, stage: int, rate: float | None, precision: str = "fp32",
    zero: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One job of :mod:`benchmarks.support.network_worker`; ``zero``: further keys of DeepSpeed's zero_optimization."""
    return {
        "rate": rate, "stage": stage, "precision": precision, "steps": arguments.steps, "zero": zero or {},
        "settings": [
            *("--data.loader", "synthetic", "--data.size", str(arguments.size), "--run.device", "cpu"),
            *("--model.name", arguments.model, "--train.precision", precision, "--train.zero_stage", str(stage)),
            *("--train.global_batch", str(arguments.batch * ranks), "--train.micro_batch", str(arguments.batch)),
            *("--train.epochs", "1000000", "--track.wandb", "off"),
        ],
    }  # fmt: skip


def measure(jobs: list[dict[str, Any]], ranks: int) -> list[dict[str, Any]]:
    """Run all jobs on ``ranks`` ranks, each in its namespace; return the jobs with the measurements of all ranks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = training_shards(folder, 64)
        for index, job in enumerate(jobs):
            job["settings"] += ["--data.shards", str(shards), "--run.dir", str(folder)]
            if job["zero"]:
                settings = folder / f"{index}.json"
                settings.write_text(json.dumps({"zero_optimization": {"stage": job["stage"], **job["zero"]}}))
                job["settings"] += ["--train.deepspeed", str(settings)]
        (folder / "jobs.json").write_text(json.dumps(jobs))
        command = [
            sys.executable,
            "-m",
            "benchmarks.support.network_worker",
            f"{folder}/jobs.json",
            f"{folder}/out.json",
        ]
        namespaces.run(command, ranks)
        results: list[dict[str, Any]] = json.loads((folder / "out.json").read_text())
        return results


def ring_traffic(result: dict[str, Any], ranks: int) -> tuple[float, float]:
    """(hops, bytes per rank) of a step by the ring model, from the counted messages."""
    traffic = Traffic.from_counts(result["ranks"][0]["collectives"])
    return traffic.hops(ranks, "cpu"), traffic.wire_bytes(ranks, "cpu")


def result_rows(result: dict[str, Any], ranks: int) -> list[Row]:
    """The rows of a job: its step, and its all-reduce by itself."""
    measured, rate = result["ranks"], result["rate"]
    hops, size = ring_traffic(result, ranks)
    message = 4 * measured[0]["parameters"]
    counted, counted_alone = (
        statistics.fmean(rank[name] for rank in measured) for name in ("wire", "all_reduce_bytes")
    )
    seconds = min(rank["together"]["communication"] for rank in measured)
    seconds_alone = min(rank["all_reduce"] for rank in measured)
    return [
        Row(ranks, result["stage"], rate, hops, size, counted, seconds),
        Row(ranks, None, rate, ring_hops("all_reduce", ranks), ring_bytes("all_reduce", message, ranks),
            counted_alone, seconds_alone),
    ]  # fmt: skip


def merge_repeats(rows: list[Row]) -> list[Row]:
    """Sort the rows, and merge the all-reduces that were measured before each stage into their median."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.ranks, -1 if row.stage is None else row.stage, row.rate or 1e9), []).append(row)
    return [
        replace(group[0], seconds=statistics.median(row.seconds for row in group))
        for _, group in sorted(groups.items())
    ]


def print_seconds(rows: list[Row], alpha: float, fit_rates: list[float]) -> None:
    """Print measured and predicted times, and the errors at rates that α was not fitted to."""
    print(f"{'ranks':>5} {'what':20}{'Mbit/s':>10}{'measured, ms':>14}{'predicted, ms':>15}{'error':>8}")
    errors: dict[str, list[float]] = {"step": [], "alone": []}
    for row in rows:
        line = f"{row.ranks:5} {row.name:20}{row.rate or 'unlimited':>10}{1e3 * row.seconds:14.1f}"
        if row.rate:
            predicted = alpha * row.hops + row.wire_seconds
            line += f"{1e3 * predicted:15.1f}{predicted / row.seconds - 1:+8.1%}"
            if row.rate not in fit_rates:
                errors["alone" if row.stage is None else "step"].append(abs(predicted / row.seconds - 1))
                line += "  held back"
        print(line)
    for name, values in errors.items():
        print(f"held back, {name}: median error {statistics.median(values):.1%}, worst {max(values):.1%}"
              f" of {len(values)}")  # fmt: skip


def print_bytes(rows: list[Row]) -> None:
    """Print modelled and counted bytes."""
    print(f"\n{'ranks':>5} {'what':20}{'hops':>6}{'model, MB':>11}{'interface, MB':>15}{'ratio':>8}")
    for row in rows:
        print(f"{row.ranks:5} {row.name:20}{row.hops:6.0f}{row.bytes / 1e6:11.3f}{row.counted / 1e6:15.3f}"
              f"{row.counted / row.bytes:8.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
