"""Two real ranks compute what one process computes; checks share a start (see two_ranks.py)."""

from __future__ import annotations

import os
import sys

import pytest
from helpers import ROOT, command

START = """
import sys
from launch.local import Placement, start
ranks = start([sys.executable, "tests/ranks/two_ranks.py", sys.argv[1]], Placement(2))
sys.exit(any([rank.wait() for rank in ranks]))
"""


def agree(checks: str) -> None:
    path = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "tests" / "support", ROOT / "tests" / "training"))
    result = command([sys.executable, "-c", START, checks], PYTHONPATH=path)
    assert result.out.count("all checks passed") == 2, result.out


def test_two_ranks_agree_with_one() -> None:
    """BatchNorm averaged and synchronised, a classifier trained alone under each ZeRO stage."""
    agree("arithmetic")


@pytest.mark.slow
def test_compiled_networks_on_two_ranks() -> None:
    agree("compiled")
