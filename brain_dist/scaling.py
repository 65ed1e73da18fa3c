"""Scaling: ``python -m brain_dist.scaling run --nodes 1,2,4 --mode both --out DIR --data.shards SHARDS``.

``run`` measures how a training step speeds up over nodes; ``predict`` extrapolates the measurements to other machines.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from brain_dist.errors import UserError, leave

USAGE = """\
usage: brain-dist scaling run|predict [...]

  run      measure images/s, speed-up and step times on 1, 2, 4, … nodes
  predict  fit a cost model to measurements, and predict other machines

both have --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Call ``run`` or ``predict``.

    Raises:
        UserError: the command is unknown, or its arguments are invalid.
    """
    command, *arguments = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if command == "run":
        from brain_dist.scalability.run import main as run

        return run(arguments)
    if command == "predict":
        from brain_dist.scalability.predict import main as predict

        return predict(arguments)
    raise UserError(f"scaling {command}: unknown command; use run or predict")


if __name__ == "__main__":
    leave(main)
