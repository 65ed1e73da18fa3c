"""Write the report of a run: one self-contained HTML page about its predictions, and the model card beside it.

    python -m brain_dist.report runs/NAME

All numbers come from the predictions table. The network is only used to show images as it saw them, with maps of what
it looked at. If the shards or the checkpoint no longer exist, the page has no images and says why. The card,
MODEL_CARD.md, has Hugging Face's format; nothing is uploaded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from brain_dist.common.commands import ArgumentParser
from brain_dist.errors import leave


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = ArgumentParser("brain-dist report", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="the run's folder, such as runs/NAME")
    parser.add_argument(
        "--name", default="test", help="predictions to report on: a file name without .parquet (default: test)"
    )
    parser.add_argument(
        "--predictions", type=Path, metavar="DIR", help="folder of the predictions (default: RUN/predictions)"
    )
    parser.add_argument(
        "--out", type=Path, help="page to write, with MODEL_CARD.md beside it (default: RUN/report/index.html)"
    )
    args = parser.parse_args(argv)
    from brain_dist.common.progress import show_activity

    with show_activity("writing the report"):
        from brain_dist.reporting.build import write_report

        report = write_report(args.run, args.name, args.predictions, args.out)
    if report.images_missing:
        print(f"brain-dist: note: the report has no images: {report.images_missing}", file=sys.stderr)
    if report.card_missing:
        print(f"brain-dist: note: there is no model card: {report.card_missing}", file=sys.stderr)
    print(f"{report.page} ({report.page.stat().st_size / 1e6:.1f} MB)")
    if report.card is not None:
        print(report.card)
    return 0


if __name__ == "__main__":
    leave(main)
