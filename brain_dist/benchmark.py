"""Benchmark: ``python -m brain_dist.benchmark run OUT --config configs/bench/cpu.yaml --models A,B --seeds 0,1,2``.

``run`` trains and evaluates models × seeds × folds under the same conditions; ``cross`` does so on each of
several collections and tests on the others; ``table`` judges what is there, ``page`` shows it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from brain_dist.errors import UserError, leave

USAGE = """\
usage: brain-dist benchmark run|cross|probe|table|page|costs [...]

  run      train and evaluate several models under the same conditions, and write the table
  cross    train on each of several collections and on all but one, and test on the others
  probe    measure how well the collection can be read from the features of cross's networks
  table    write the table of the cells that are finished
  page     write the page of the results, index.html
  costs    measure parameters, operations, latency, throughput, memory and energy of the models

all have --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Call ``run``, ``cross``, ``probe``, ``table``, ``page`` or ``costs``.

    Raises:
        UserError: the command is unknown, or its arguments are invalid.
    """
    command, *arguments = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if command == "run":
        from brain_dist.benchmarking.run import main as run

        return run(arguments)
    if command == "table":
        from brain_dist.benchmarking.table import main as table

        return table(arguments)
    if command == "cross":
        from brain_dist.benchmarking.cross import main as cross

        return cross(arguments)
    if command == "probe":
        from brain_dist.benchmarking.probe import main as probe

        return probe(arguments)
    if command == "page":
        from brain_dist.benchmarking.page import main as page

        return page(arguments)
    if command == "costs":
        from brain_dist.benchmarking.measured import main as costs

        return costs(arguments)
    raise UserError(f"benchmark {command}: unknown command; use run, cross, probe, table, page or costs")


if __name__ == "__main__":
    leave(main)
