"""ZeRO stages 0 to 3: memory of a rank and traffic of its interface, against the formulas of the ZeRO paper.

``python -m benchmarks.zero [--ranks 2,4] [--precisions fp32,bf16]`` (root) runs real steps in network namespaces, see
``benchmarks.network``. Memory is that of tensors between the steps, and for gradients between the last backward pass
and the optimiser. The kernel counts the traffic of each rank's interface. Stage 3 is measured twice: with DeepSpeed's
defaults, and as "3 bare", where no parameter stays whole and none is kept from forward to backward, as in the paper.
The other columns are the paper's formulas, the ring's bytes for DeepSpeed's counted messages through gloo, and the same
for a back end with a real reduce-scatter (NCCL).
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from benchmarks.network import argument_parser, create_job, measure, ring_traffic
from benchmarks.support import namespaces
from brain_dist.scalability.traffic import ring_bytes, zero_footprint

BARE = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_max_live_parameters": 0,
    "stage3_prefetch_bucket_size": 0,
}
SMALL = {"reduce_bucket_size": 1_000_000}  # DeepSpeed's default, 500 million elements, is for networks of billions


def main() -> None:
    """Measure every stage, print the tables."""
    parser = argument_parser()
    parser.description = __doc__.split("\n\n")[0]
    parser.add_argument("--precisions", type=lambda text: text.split(","), default=["fp32", "bf16"])
    arguments = parser.parse_args()
    if missing := namespaces.missing_requirement():
        raise SystemExit(f"benchmarks.zero {missing}")
    for ranks in arguments.ranks:
        jobs = [
            create_job(arguments, ranks, stage=stage, rate=None, precision=precision, zero={**SMALL, **settings})
            for precision in arguments.precisions
            for stage, settings in ((0, {}), (1, {}), (2, {}), (3, {}), (3, BARE))
        ]
        print_table(measure(jobs, ranks), ranks, arguments)


def print_table(results: list[dict[str, Any]], ranks: int, arguments: argparse.Namespace) -> None:
    """Print MB per rank, measured, and by the paper's formula in parentheses."""
    parameters = results[0]["ranks"][0]["parameters"]
    print(f"{arguments.model}, Ψ = {parameters / 1e6:.3f} million, {ranks} ranks; MB a rank, in brackets the paper's"
          " formula")  # fmt: skip
    print(f"{'':13}{'weights':>16}{'gradients':>16}{'optimiser':>16}{'buckets':>9}{'sent a step':>19}{'ring':>7}"
          f"{'NCCL':>7}{'messages':>10}")  # fmt: skip
    for result in results:
        print(table_row(result, ranks, parameters))
    print()


def table_row(result: dict[str, Any], ranks: int, parameters: int) -> str:
    """One line of the table."""
    stage, precision, measured = result["stage"], result["precision"], result["ranks"]
    # DeepSpeed keeps fp32 master weights at stages 1 to 3, in fp32 too
    paper = zero_footprint(stage, parameters, ranks, precision, master_weights=stage > 0 or precision == "bf16")
    largest = {name: max(rank["memory"][name] for rank in measured) for name in ("weights", "optimiser")}
    largest |= {name: max(rank[name] for rank in measured) for name in ("gradients", "buckets")}
    name = f"{precision} {stage}{' bare' if 'stage3_max_reuse_distance' in result['zero'] else ''}"
    memory = "".join(
        f"{largest[part] / 1e6:9.2f} ({getattr(paper, part) / 1e6:.2f})".rjust(16)
        for part in ("weights", "gradients", "optimiser")
    )
    sent = statistics.fmean(rank["wire"] for rank in measured)
    collectives = measured[0]["collectives"]
    nccl = sum(ring_bytes(collective, size, ranks) for collective, (_, size) in collectives.items())
    messages = sum(count for count, _ in collectives.values())
    return (
        f"{name:13}{memory}{largest['buckets'] / 1e6:9.2f}"
        + f"{sent / 1e6:9.2f} ({paper.traffic / 1e6:.2f})".rjust(19)
        + f"{ring_traffic(result, ranks)[1] / 1e6:7.2f}{nccl / 1e6:7.2f}{messages:10.0f}"
    )


if __name__ == "__main__":
    main()
