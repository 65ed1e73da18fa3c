"""ZeRO stages 0 to 3: what a rank holds and what its interface sends, against the formulas of the ZeRO paper.

``python -m benchmarks.zero [--ranks 2,4] [--precisions fp32,bf16]`` (root): real steps in network namespaces, see
``benchmarks.network``. Memory is that of tensors, measured between the steps, and for gradients between the last
backward pass and the optimiser's part. Traffic is counted by the kernel on each rank's interface. Stage 3 is measured
twice: as DeepSpeed comes, and "3 bare", with no parameter kept whole and none kept from forward to backward, as the
paper has it. The other columns are the paper's formulas, the ring's bytes for the messages that DeepSpeed was seen to
send through gloo, and the same for a back end that can reduce and scatter at once (NCCL).
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from benchmarks import namespaces
from benchmarks.network import exchanged, job, measure, numbers
from brain_dist.scalability import cost

BARE = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_max_live_parameters": 0,
    "stage3_prefetch_bucket_size": 0,
}
SMALL = {"reduce_bucket_size": 1_000_000}  # DeepSpeed's buckets are 500 million elements each, for networks of billions


def main() -> None:
    """Measure every stage, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ranks", type=numbers, default=[2, 4])
    parser.add_argument("--precisions", type=lambda words: words.split(","), default=["fp32", "bf16"])
    parser.add_argument("--model", default="convnext_zepto_rms_ols")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8, help="images a rank")
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    if why := namespaces.refusal():
        raise SystemExit(f"benchmarks.zero {why}")
    for ranks in arguments.ranks:
        jobs = [
            job(arguments, ranks, stage=stage, rate=None, precision=precision, zero={**SMALL, **more})
            for precision in arguments.precisions
            for stage, more in ((0, {}), (1, {}), (2, {}), (3, {}), (3, BARE))
        ]
        show(measure(jobs, ranks), ranks, arguments)


def show(found: list[dict[str, Any]], ranks: int, arguments: argparse.Namespace) -> None:
    """MB a rank: measured, and by the formula behind it in brackets."""
    size = found[0]["ranks"][0]["parameters"]
    print(f"{arguments.model}, Ψ = {size / 1e6:.3f} million, {ranks} ranks; MB a rank, in brackets the paper's formula")
    print(f"{'':13}{'weights':>16}{'gradients':>16}{'optimiser':>16}{'buckets':>9}{'sent a step':>19}{'ring':>7}"
          f"{'NCCL':>7}{'messages':>10}")  # fmt: skip
    for each in found:
        stage, precision, held = each["stage"], each["precision"], each["ranks"]
        # DeepSpeed keeps fp32 weights of its own from stage 1 on, in fp32 too
        told = cost.zero(stage, size, ranks, precision, master=stage > 0 or precision == "bf16")
        most = {name: max(rank["memory"][name] for rank in held) for name in ("weights", "optimiser")}
        most |= {name: max(rank[name] for rank in held) for name in ("gradients", "buckets")}
        name = f"{precision} {stage}{' bare' if 'stage3_max_reuse_distance' in each['zero'] else ''}"
        line = f"{name:13}" + "".join(
            f"{most[part] / 1e6:9.2f} ({getattr(told, part) / 1e6:.2f})".rjust(16)
            for part in ("weights", "gradients", "optimiser")
        )
        sent = statistics.fmean(rank["wire"] for rank in held)
        kinds = held[0]["collectives"]
        nccl = sum(cost.ring_bytes(kind, size, ranks) for kind, (_, size) in kinds.items())
        line += f"{most['buckets'] / 1e6:9.2f}" + f"{sent / 1e6:9.2f} ({told.traffic / 1e6:.2f})".rjust(19)
        line += f"{exchanged(each, ranks)[1] / 1e6:7.2f}{nccl / 1e6:7.2f}{sum(n for n, _ in kinds.values()):10.0f}"
        print(line)
    print()


if __name__ == "__main__":
    main()
