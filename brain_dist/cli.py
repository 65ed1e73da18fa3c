"""``brain-dist VERB …`` is ``python -m brain_dist.VERB …``; this module only finds the verb."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from brain_dist import __version__
from brain_dist.errors import UserError, leave

VERBS = {
    "shard": "collections into verified, leak-free shards (build, verify, join, audit, phantom)",
    "train": "train a classifier on shards, on one process or many",
    "evaluate": "predict a split exactly once per sample and compute the metrics",
    "shortcut": "how well the label can be guessed without looking at the disease",
    "report": "one self-contained HTML page of a run",
    "profile": "where a training step's time goes, what binds, and what to change",
    "scaling": "how a training step speeds up over nodes (run, predict)",
    "sync": "upload offline W&B runs, from where there is a network",
    "weights": "cache ImageNet weights on a machine with network access",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hand over to the verb's own ``main``."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        listing = "\n".join(f"  {name:10} {what}" for name, what in VERBS.items())
        print(f"usage: brain-dist VERB [...]\n\nverbs (each answers --help):\n{listing}")
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    if words[0] not in VERBS:
        raise UserError(f"no verb '{words[0]}'; there are {', '.join(VERBS)}")
    return int(importlib.import_module(f"brain_dist.{words[0]}").main(words[1:]))


def entry() -> None:
    """The console script."""
    leave(main)


if __name__ == "__main__":
    entry()
