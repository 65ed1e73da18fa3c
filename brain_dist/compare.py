"""Compare models on the same images, patient by patient, and group those that do not differ significantly.

    python -m brain_dist.compare runs/A runs/B --out compared
    python -m brain_dist.compare --group convnext=runs/c0,runs/c1,runs/c2 --group resnet=runs/r0,runs/r1,runs/r2
    python -m brain_dist.compare --benchmark runs/bench --out compared

Only predictions tables are read. What the data cannot carry is refused in words, and the exit code is 0.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from brain_dist.common.commands import ArgumentParser
from brain_dist.errors import UserError, leave


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Raises:
        UserError: as :func:`~brain_dist.comparison.tables.name_models`,
            :func:`~brain_dist.comparison.tables.read_tables`, :func:`~brain_dist.comparison.build.check_settings` and
            :func:`~brain_dist.benchmarking.results.runs_by_model`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = ArgumentParser("brain-dist compare", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="a model: the folder of its run, or a file of predictions"
    )
    parser.add_argument(
        "--group", action="append", default=[], metavar="MODEL=RUN,RUN",
        help="a model with several runs: seeds, whose mean counts, or folds; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--benchmark", type=Path, metavar="OUT", help="the models of a benchmark, each with its complete seeds"
    )
    parser.add_argument(
        "--name", action="append", metavar="NAME",
        help="predictions in a run's folder to compare; may be repeated, for several collections (default: test)",
    )  # fmt: skip
    parser.add_argument(
        "--unit", default="image", choices=("image", "collection", "fold"),
        help="independent unit of the tests beside the headline: images of one test set, collections (ranks), or"
        " folds of cross-validation (default: image)",
    )  # fmt: skip
    parser.add_argument(
        "--metric", action="append", metavar="METRIC",
        help="metric to compare; the first one is the headline; may be repeated (default: accuracy and five others)",
    )  # fmt: skip
    parser.add_argument(
        "--margin", type=float, metavar="X",
        help="largest loss that counts as not inferior, in units of the metric, such as 0.02",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="also write index.html, compare.json and compare.csv to this folder"
    )
    args = parser.parse_args(words)
    from brain_dist.benchmarking.folder import Folder
    from brain_dist.benchmarking.results import runs_by_model
    from brain_dist.comparison.build import DEFAULT_METRICS, check_settings, compare, write_comparison
    from brain_dist.comparison.tables import name_models, read_tables
    from brain_dist.comparison.terminal import comparison_text

    metrics, names = args.metric or list(DEFAULT_METRICS), args.name or ["test"]
    check_settings(metrics, args.margin)
    models = name_models(args.runs, args.group)
    if args.benchmark:
        cells = runs_by_model(Folder(args.benchmark), names[0])
        double = next((name for name in cells if name in models), None)
        if double is not None:
            raise UserError(
                f"two models have the name {double}; name that beside {args.benchmark} with --group MODEL=RUN"
            )
        models |= cells
    comparison = compare(read_tables(models, names), metrics, args.unit, args.margin)
    if args.out:
        write_comparison(comparison, shlex.join(["brain-dist", "compare", *words]), args.out)
    print(comparison_text(comparison))
    if args.out:
        print(f"\n{args.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    leave(main)
