"""Train: ``python -m brain_dist.train --config configs/convnext_base.yaml --data.shards DIR``.

The same command runs alone, under torchrun, under deepspeed and under srun. The training loop is
:meth:`brain_dist.training.loop.Trainer.run`.
"""

from __future__ import annotations

from collections.abc import Sequence

from brain_dist.config import load
from brain_dist.errors import leave
from brain_dist.ranks.stopping import catch_stop_signals
from brain_dist.ranks.world import command_line


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the settings and train. The exit code is 75 after a stop request and a clean save."""
    with catch_stop_signals() as stop_request:  # before the slow imports: a signal may arrive at any time
        arguments = command_line(argv)
        config = load(
            arguments, "brain-dist train", "Train a classifier on shards. Every setting is a YAML key and a flag."
        )
        from brain_dist.training.start import run_training

        return run_training(config, stop_request, command=["brain-dist", "train", *arguments])


if __name__ == "__main__":
    leave(main)
