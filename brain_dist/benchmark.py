"""Benchmark: ``python -m brain_dist.benchmark run OUT --config configs/bench/cpu.yaml --models A,B --seeds 0,1,2``.

``run`` trains and evaluates models × seeds × folds under the same conditions; ``cross`` does so on each of
several collections and tests on the others; ``table`` judges what is there, ``page`` shows it.
"""

from __future__ import annotations

from collections.abc import Sequence

from brain_dist.common.commands import call_subcommand
from brain_dist.errors import leave

USAGE = """\
usage: brain-dist benchmark run|cross|probe|table|page|costs [...]

  run      train and evaluate several models under the same conditions, and write the table
  cross    train on each of several collections and on all but one, and test on the others
  probe    measure how well the features of cross's networks tell which collection an image is from
  table    write the table of the cells that are finished
  page     write the page of the results, index.html
  costs    measure parameters, operations, latency, throughput, memory and energy of the models

all have --help
"""
MODULES = {
    "run": "benchmarking.run",
    "cross": "benchmarking.cross",
    "probe": "benchmarking.probe",
    "table": "benchmarking.table",
    "page": "benchmarking.page",
    "costs": "benchmarking.measured",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Call a command.

    Raises:
        UserError: the command is unknown, or its arguments are invalid.
    """
    return call_subcommand("benchmark", USAGE, MODULES, argv)


if __name__ == "__main__":
    leave(main)
