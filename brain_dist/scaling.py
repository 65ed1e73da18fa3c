"""Scaling: ``python -m brain_dist.scaling run --nodes 1,2,4 --mode both --out DIR --data.shards SHARDS``.

``run`` measures how a training step speeds up over nodes; ``predict`` extrapolates the measurements to other machines.
"""

from __future__ import annotations

from collections.abc import Sequence

from brain_dist.common.commands import call_subcommand
from brain_dist.errors import leave

USAGE = """\
usage: brain-dist scaling run|predict [...]

  run      measure images/s, speed-up and step times on 1, 2, 4, … nodes
  predict  fit a cost model to measurements, and predict other machines

both have --help
"""
MODULES = {
    "run": "scalability.run",
    "predict": "scalability.predict",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Call a command.

    Raises:
        UserError: the command is unknown, or its arguments are invalid.
    """
    return call_subcommand("scaling", USAGE, MODULES, argv)


if __name__ == "__main__":
    leave(main)
