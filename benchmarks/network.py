"""The cost model's communication against networks of known bandwidth, its bytes against the interface's counters.

``python -m benchmarks.network [--ranks 2,4] [--rates 50,100,200,500] [--stages 2,3]`` (root) gives each rank a
network namespace, joins them by veth pairs and a bridge, limits each to a rate by tbf, and trains a small ConvNeXt on
noise. β is the rate that was set, less Ethernet's and TCP's headers: it is not fitted. Only α is, at every other rate;
the other rates are held back, and their error is the check. A collective ends for all ranks at once, so the rank that
came last waited for nobody: a step's communication is taken from the rank that had the least of it.
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

from benchmarks import namespaces
from benchmarks.loop_overhead import phantoms
from brain_dist.scalability import cost, cost_fit


@dataclass(frozen=True)
class Row:
    """One kind of exchange at one rate: ``stage`` None is an all-reduce of all gradients by itself."""

    ranks: int
    stage: int | None
    rate: float | None
    hops: float
    bytes: float  # of the model
    counted: float
    seconds: float

    @property
    def wire(self) -> float:
        """Seconds of the model's bytes at the known bandwidth."""
        return self.bytes / (self.rate * 1e6 / 8 * namespaces.PAYLOAD) if self.rate else 0.0


def main() -> None:
    """Measure, fit α, print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ranks", type=numbers, default=[2, 4])
    parser.add_argument("--rates", type=numbers, default=[50, 100, 200, 500], help="Mbit/s; unlimited comes last")
    parser.add_argument("--stages", type=numbers, default=[2, 3])
    parser.add_argument("--model", default="convnext_zepto_rms_ols")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8, help="images a rank")
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    if why := namespaces.refusal():
        raise SystemExit(f"benchmarks.network {why}")
    if len(arguments.rates) < 2:
        raise SystemExit("benchmarks.network: --rates needs two or more, half of them to check the other half")
    rows: list[Row] = []
    for ranks in arguments.ranks:
        jobs = [
            job(arguments, ranks, stage=stage, rate=rate)
            for stage in arguments.stages
            for rate in [*arguments.rates, None]
        ]
        for found in measure(jobs, ranks):
            rows += rows_of(found, ranks)
    show(rows, arguments)


def numbers(words: str) -> list[int]:
    """``1,2,4``."""
    return [int(word) for word in words.split(",")]


def job(
    arguments: argparse.Namespace, ranks: int, *, stage: int, rate: float | None, precision: str = "fp32",
    zero: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What :mod:`benchmarks.network_worker` does once; ``zero``: further keys of DeepSpeed's zero_optimization."""
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
    """Start that many ranks, each in its namespace, and do the jobs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = phantoms(folder, 64)
        for number, each in enumerate(jobs):
            each["settings"] += ["--data.shards", str(shards), "--run.dir", str(folder)]
            if each["zero"]:
                settings = folder / f"{number}.json"
                settings.write_text(json.dumps({"zero_optimization": {"stage": each["stage"], **each["zero"]}}))
                each["settings"] += ["--train.deepspeed", str(settings)]
        (folder / "jobs.json").write_text(json.dumps(jobs))
        words = [sys.executable, "-m", "benchmarks.network_worker", str(folder / "jobs.json"), str(folder / "out.json")]
        namespaces.run(words, ranks)
        found: list[dict[str, Any]] = json.loads((folder / "out.json").read_text())
        return found


def exchanged(found: dict[str, Any], ranks: int) -> tuple[float, float]:
    """(hops, wire bytes a rank) of a step by the ring, from the messages that were counted."""
    sent = cost.Traffic.of(found["ranks"][0]["collectives"])
    return sent.hops(ranks, "cpu"), sent.wire(ranks, "cpu")


def rows_of(found: dict[str, Any], ranks: int) -> list[Row]:
    """A job's step, and its all-reduce by itself."""
    each = found["ranks"]
    hops, wire = exchanged(found, ranks)
    step = min(rank["stages"]["communication"] for rank in each)
    alone, message = min(rank["alone"] for rank in each), 4 * each[0]["parameters"]
    return [
        Row(ranks, found["stage"], found["rate"], hops, wire, _mean(each, "wire"), step),
        Row(ranks, None, found["rate"], cost.ring_hops("all_reduce", ranks),
            cost.ring_bytes("all_reduce", message, ranks), _mean(each, "alone_bytes"), alone),
    ]  # fmt: skip


def _mean(ranks: list[dict[str, Any]], name: str) -> float:
    return statistics.fmean(rank[name] for rank in ranks)


def show(rows: list[Row], arguments: argparse.Namespace) -> None:
    """α, the table of seconds, the table of bytes."""
    shaped = [row for row in rows if row.rate]
    taken = sorted({row.rate for row in shaped if row.rate})[::2]
    alpha = cost_fit.latency([(row.hops, row.wire, row.seconds) for row in shaped if row.rate in taken])
    print(f"{arguments.model} {arguments.size}², fp32, batch {arguments.batch} a rank")
    print(f"α {1e6 * alpha:.0f} µs a hop, fitted at {', '.join(f'{rate:g}' for rate in taken)} Mbit/s; β known\n")
    print(f"{'ranks':>5} {'what':20}{'Mbit/s':>10}{'measured, ms':>14}{'predicted, ms':>15}{'error':>8}")
    errors: dict[str, list[float]] = {"step": [], "alone": []}
    for row in _medians(rows):
        what = "all-reduce, alone" if row.stage is None else f"a step of ZeRO {row.stage}"
        line = f"{row.ranks:5} {what:20}{row.rate or 'unlimited':>10}{1e3 * row.seconds:14.1f}"
        if row.rate:
            guess = alpha * row.hops + row.wire
            line += f"{1e3 * guess:15.1f}{guess / row.seconds - 1:+8.1%}"
            if row.rate not in taken:
                errors["alone" if row.stage is None else "step"].append(abs(guess / row.seconds - 1))
                line += "  held back"
        print(line)
    for name, each in errors.items():
        print(f"held back, {name}: median error {statistics.median(each):.1%}, worst {max(each):.1%} of {len(each)}")
    print(f"\n{'ranks':>5} {'what':20}{'hops':>6}{'model, MB':>11}{'interface, MB':>15}{'ratio':>8}")
    for row in _medians(rows):
        if row.rate == arguments.rates[0]:
            what = "all-reduce, alone" if row.stage is None else f"a step of ZeRO {row.stage}"
            print(f"{row.ranks:5} {what:20}{row.hops:6.0f}{row.bytes / 1e6:11.3f}{row.counted / 1e6:15.3f}"
                  f"{row.counted / row.bytes:8.3f}")  # fmt: skip


def _medians(rows: list[Row]) -> list[Row]:
    """The all-reduce alone was measured before each stage: one row of them, with the median of their seconds."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.ranks, -1 if row.stage is None else row.stage, row.rate or 1e9), []).append(row)
    return [
        replace(group[0], seconds=statistics.median(row.seconds for row in group))
        for _, group in sorted(groups.items())
    ]


if __name__ == "__main__":
    main()
