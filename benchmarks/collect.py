"""One Markdown row of mean and spread over the seeds of an experiment.

``python -m benchmarks.collect runs/zepto-0 runs/zepto-1 runs/zepto-2`` reads predictions/test.json of each run. It
prints mean ± sample standard deviation (percent), then the accuracy of each seed with its confidence interval.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from brain_dist.pages.text import interval_text

COLUMNS = ("accuracy", "balanced_accuracy", "f1_macro", "specificity_macro", "auc_macro", "kappa", "ece")


def main() -> None:
    """Print the row with its header, then one line per seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    runs = parser.parse_args().runs
    results = [json.loads((run / "predictions" / "test.json").read_text()) for run in runs]
    print("| seeds | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    cells = []
    for name in COLUMNS:
        values = [100 * metrics[name] for metrics in results]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.1f}{spread}")
    print(f"| {len(results)} | " + " | ".join(cells) + " |")
    for run, metrics in zip(runs, results, strict=True):
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        minutes = (records[-1]["time"] - records[0]["time"]) / 60
        print(
            f"{run.name}: accuracy {metrics['accuracy']:.1%}, 95 % interval over {metrics['groups']} groups"
            f" {interval_text(metrics['accuracy_interval'])}; trained in {minutes:.1f} min"
        )


if __name__ == "__main__":
    main()
