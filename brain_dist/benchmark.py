"""Benchmark: ``python -m brain_dist.benchmark run OUT --config configs/bench/cpu.yaml --models A,B --seeds 0,1,2``.

``run`` trains and evaluates models × seeds × folds under the same conditions; ``table`` judges what is there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from brain_dist.errors import UserError, leave

USAGE = """\
usage: brain-dist benchmark run|table|costs [...]

  run      train and evaluate several models under the same conditions, and write the table
  table    write the table of the cells that are finished
  costs    measure parameters, operations, latency, throughput, memory and energy of the models

all have --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Call ``run``, ``table`` or ``costs``.

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
    if command == "costs":
        from brain_dist.benchmarking.measured import main as costs

        return costs(arguments)
    raise UserError(f"benchmark {command}: unknown command; use run, table or costs")


if __name__ == "__main__":
    leave(main)
