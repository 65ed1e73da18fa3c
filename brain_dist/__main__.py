"""``python -m brain_dist COMMAND …``."""

from brain_dist.cli import entry

entry()
