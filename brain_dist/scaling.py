"""Scaling: ``python -m brain_dist.scaling run --nodes 1,2,4 --mode both --out DIR --data.shards SHARDS``.

How a training step speeds up over nodes. Every case is a real ``brain-dist profile``: as steps inside a SLURM
allocation, as a job a case from a login node, else by processes of this machine. Takes every setting of a run. An
experiment that was interrupted goes on by the same command; the cases it has are kept.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from brain_dist.errors import UserError, leave
from brain_dist.scalability.run import run_experiment


def main(argv: Sequence[str] | None = None) -> int:
    """Hand over to ``run`` or ``predict``."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(
            "usage: brain-dist scaling run|predict [...]\n\n"
            "  run      measure images/s, speed-up and step times on 1, 2, 4, … nodes\n"
            "  predict  fit a cost model to measured runs, and say what other machines would give\n\n"
            "each answers --help"
        )
        return 0
    if words[0] == "predict":
        return int(importlib.import_module("brain_dist.scalability.predict").main(words[1:]))
    if words[0] != "run":
        raise UserError(f"scaling {words[0]}: there are run and predict")
    return run_experiment(words[1:])


if __name__ == "__main__":
    leave(main)
