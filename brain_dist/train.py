"""Train: ``python -m brain_dist.train --config configs/convnext_base.yaml --data.shards DIR``.

The same entry point alone, under torchrun, under deepspeed and under srun. Read :func:`fit` first: it is the whole
loop.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from brain_dist.errors import leave
from brain_dist.training.start import run_training

if TYPE_CHECKING:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, join the process group, train. Exit code 75 after a signal and a clean save."""
    from brain_dist.ranks.stopping import catch_stop_signals

    with catch_stop_signals() as wish:  # first of all: a signal may come at any moment
        return run_training(list(sys.argv[1:] if argv is None else argv), wish)


if __name__ == "__main__":
    leave(main)
