"""Report: ``python -m brain_dist.report runs/NAME`` writes one self-contained page to be read by people.

Numbers come from the predictions table alone. The network is used once, to show pictures as it saw them and where it
looked; where shards or checkpoint are gone the page says so in place of the pictures.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.errors import UserError, leave
from brain_dist.judging.predictions import read_predictions
from brain_dist.reporting.build import _dataset, build_report, make_examples, typical_hits, worst_mistakes

if TYPE_CHECKING:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Read the run, make the pictures, write the page."""
    parser = argparse.ArgumentParser("brain-dist report", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="the run's folder, such as runs/NAME")
    parser.add_argument(
        "--name", default="test", help="which predictions: the file's name without .parquet (default: test)"
    )
    parser.add_argument("--out", type=Path, help="the page's file (default: RUN/report/index.html)")
    args = parser.parse_args(argv)
    predictions = read_predictions(args.run / "predictions" / f"{args.name}.parquet")
    positions = np.concatenate([worst_mistakes(predictions), typical_hits(predictions)])
    examples, missing = None, _dataset(predictions)[1] or None
    if missing is None:
        from brain_dist.inference.run import load_run

        try:
            loaded = load_run(args.run, step=predictions.step, shards=predictions.shards)
            examples = make_examples(loaded, predictions, positions)
        except UserError as error:
            missing = str(error)
    page = build_report(args.run, examples, args.name, missing)
    out = args.out or args.run / "report" / "index.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    part.write_text(page, encoding="utf-8")
    part.replace(out)
    if missing:
        print(f"brain-dist: note: no pictures, because {missing}", file=sys.stderr)
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    leave(main)
