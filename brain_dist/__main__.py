"""``python -m brain_dist VERB …``."""

from brain_dist.cli import entry

entry()
