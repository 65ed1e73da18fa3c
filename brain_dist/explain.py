"""Explain a run's predictions: maps of what the network looked at, measured against known tumours and references.

    python -m brain_dist.explain runs/NAME --methods gradcam,gradcam++,gradientshap
    python -m brain_dist.explain runs/SEED0 runs/SEED1 runs/SEED2 --methods layercam

Writes explanations/NAME.parquet, NAME.json and NAME.md, and report/explanations.html, which the report then cites.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from brain_dist.common.commands import ArgumentParser
from brain_dist.errors import leave


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and explain the runs."""
    parser = ArgumentParser("brain-dist explain", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run's folder; several also tell whether their maps agree"
    )
    parser.add_argument(
        "--methods", default="gradientshap,layercam,gradcam,gradcam++", metavar="METHOD,…",
        help="gradcam, gradcam++, layercam, hirescam, gradientshap (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--name", default="test", help="predictions whose images are explained (default: test)")
    parser.add_argument("--shards", help="the shards of these predictions, if they were moved since the evaluation")
    parser.add_argument(
        "--limit", type=int, default=200, metavar="N",
        help="most images, of as many patients as possible (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=int, default=200, metavar="N",
        help="samples of GradientSHAP per image; its completeness error tells if they suffice (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--skip-perturbation", action="store_false", dest="perturb",
        help="leave out insertion and deletion, which take most of the time; the tumours must be known",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all draws (default: 0)")
    parser.add_argument(
        "--batch", type=int, default=32, metavar="N", dest="micro_batch", help="images per forward pass (default: 32)"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="(default: auto)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of all files (default: the run's)")
    parser.add_argument(
        "--evidence", action="store_true",
        help="also make the evidence test: what the network says without the tumour, of all these images",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    with_evidence = arguments.__dict__.pop("evidence")
    from brain_dist.explaining.build import explain

    explain(**vars(arguments))
    if with_evidence:
        from brain_dist.explaining.evidence import evidence

        for run in arguments.runs:
            several = arguments.out is not None and len(arguments.runs) > 1
            out = arguments.out / run.resolve().name if several else arguments.out
            evidence(
                run, out, name=arguments.name, shards=arguments.shards, micro_batch=arguments.micro_batch,
                device=arguments.device,
            )  # fmt: skip
    return 0


if __name__ == "__main__":
    leave(main)
