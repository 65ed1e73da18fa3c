"""Figures of pages."""

from __future__ import annotations

import subprocess
import sys

from helpers import ROOT, environment


def test_figures_without_a_writable_home_print_nothing() -> None:
    code = "from brain_dist.pages.figures import *; print(len(figure_svg(new_figure(1, 1), 'a', 'empty')) > 100)"
    variables = environment(HOME="/dev/null/home", MPLCONFIGDIR="")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("True\n", "")
