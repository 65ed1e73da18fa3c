"""Two real ranks compute what one process computes; all checks share one start (see two_ranks.py)."""

from __future__ import annotations

import os
import sys

from helpers import ROOT, command

START = """
import sys
from launch.local import Placement, start
ranks = start([sys.executable, "tests/ranks/two_ranks.py"], Placement(2))
sys.exit(any([rank.wait() for rank in ranks]))
"""


def test_two_ranks_agree_with_one() -> None:
    """BatchNorm averaged and synchronised, a classifier trained alone under each ZeRO stage, a compiled network."""
    path = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "tests", ROOT / "tests" / "training"))
    result = command([sys.executable, "-c", START], PYTHONPATH=path)
    assert result.out.count("all checks passed") == 2, result.out
