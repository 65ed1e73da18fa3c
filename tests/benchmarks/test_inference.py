"""The table of times has a row for each form of a network."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import command


@pytest.mark.slow
def test_every_form_of_a_network_is_measured(tmp_path: Path) -> None:
    options = ["--models", "test_convnext", "--size", "32", "--seconds", "1", "--busy", "--out", str(tmp_path / "t.md")]
    result = command([sys.executable, "-m", "benchmarks.inference", *options])
    written = (tmp_path / "t.md").read_text()
    assert written.strip() == result.out.strip()
    assert "1 thread (OMP_NUM_THREADS)" in written
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in written.splitlines() if "| test_conv" in line]
    forms = {row[1]: row for row in rows}
    assert {"torch fp32", "torch channels-last", "ONNX Runtime", "ONNX Runtime int8"} <= set(forms)
    assert forms["torch fp32"][6] == "1.00"
    assert all(float(row[3]) > 0 and float(row[4].split()[0]) > 0 for row in rows)
