"""One Markdown row of mean and spread over the seeds of an experiment.

``python -m benchmarks.collect runs/zepto-0 runs/zepto-1 runs/zepto-2`` reads the runs' predictions/test.json, prints
the mean ± sample standard deviation (percent) and each seed's accuracy with its interval.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

COLUMNS = ("accuracy", "balanced_accuracy", "f1_macro", "specificity_macro", "auc_macro", "kappa", "ece")


def main() -> None:
    """Print the row under its header, then a line a seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    runs = parser.parse_args().runs
    found = [json.loads((run / "predictions" / "test.json").read_text()) for run in runs]
    print("| seeds | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    cells = []
    for name in COLUMNS:
        values = [100 * judged[name] for judged in found]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.1f}{spread}")
    print(f"| {len(found)} | " + " | ".join(cells) + " |")
    for run, judged in zip(runs, found, strict=True):
        low, high = judged["accuracy_cluster"] or judged["accuracy_wilson"]
        trained = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        minutes = (trained[-1]["time"] - trained[0]["time"]) / 60
        print(
            f"{run.name}: accuracy {judged['accuracy']:.1%}, 95 % interval {low:.1%} to {high:.1%} over"
            f" {judged['groups']} groups; trained in {minutes:.1f} min"
        )


if __name__ == "__main__":
    main()
