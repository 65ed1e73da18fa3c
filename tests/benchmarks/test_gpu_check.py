"""The driver of the GPU check; ``--dry`` runs its stages on the CPU."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from helpers import command

from benchmarks.gpu.frame import Check
from benchmarks.gpu.stages import STAGES
from benchmarks.gpu_check import failures, run_stage

MEASUREMENTS = ["machine", "versions", "ceilings", "dali", "product"]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_dry_facts_are_recorded_once(tmp_path: Path) -> None:
    kit, out = tmp_path / "kit", tmp_path / "out"
    arguments = [sys.executable, "benchmarks/gpu_check.py", "--kit", str(kit), "--out", str(out), "--dry"]
    result = command([*arguments, "--only", "facts"])
    recorded = rows(out)
    assert [row["what"] for row in recorded] == [*MEASUREMENTS, "stage ends"], recorded
    assert all(row["stage"] == "facts" and "error" not in row for row in recorded), recorded
    ceilings, end = recorded[2], recorded[-1]
    assert ceilings["matmul_best"] >= ceilings["matmul_tflops"] > 0
    assert end["code"] == 0
    assert result.out.splitlines()[-1].startswith("stage=facts what=stage ends code=0")
    assert rows(kit) == recorded
    assert (kit / "done").read_text() == "facts\n"

    result = command([*arguments, "--only", "facts"])
    assert result.out.startswith("== facts: done before\n")
    assert rows(out) == recorded
    result = command([*arguments, "--only", "facts", "--again", "--budget", "20"])
    assert "== facts: no time left" in result.out


def test_a_stage_that_exceeds_its_limit_is_ended(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    run_stage(Namespace(kit=tmp_path, out=tmp_path / "out", dry=True), "facts", limit=0.1)
    (row,) = rows(tmp_path)
    assert row["what"] == "stage ends"
    assert row["code"] == "time is up"


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    result = command([sys.executable, "benchmarks/gpu_check.py", "--only", "facts,speed"], expect=2)
    assert f"no such stage: speed; use some of {', '.join(STAGES)}" in result.err


def test_a_failed_measurement_is_a_row_and_the_stage_goes_on(tmp_path: Path) -> None:
    kit, out = tmp_path / "kit", tmp_path / "out"
    kit.mkdir()
    out.mkdir()
    check = Check("facts", kit, out, dry=True)

    def fail() -> dict[str, Any]:
        raise OSError("no such device")

    assert check.attempt("first", fail, size=3) is None
    assert check.attempt("second", lambda: {"rate": 2.5}) == {"rate": 2.5}
    failed, measured = rows(out)
    assert failed["error"] == "OSError: no such device"
    assert failed["size"] == 3
    assert "raise OSError" in failed["where"]
    assert measured["rate"] == 2.5
    assert rows(kit) == [failed, measured]
    check.record(what="resumed", ok=False)
    check.record(what="resumed", ok=True)
    check.record(what="stage ends", code="time is up")
    assert failures(out / "results.jsonl") == [
        "facts: first: OSError: no such device", "facts: resumed: not ok", "facts: stage ends: time is up"
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_every_stage_runs_dry(tmp_path: Path) -> None:
    arguments = ["--kit", str(tmp_path / "kit"), "--out", str(tmp_path / "out"), "--dry", "--budget", "5400"]
    command([sys.executable, "benchmarks/gpu_check.py", *arguments], timeout=5400)
    ended = [row for row in rows(tmp_path / "out") if row["what"] == "stage ends"]
    assert {row["stage"]: row["code"] for row in ended} == dict.fromkeys(STAGES, 0)


@pytest.mark.parametrize(("seconds", "expected"), [(100.0, True), (5.0, False)])
def test_time_left_before_the_limit(tmp_path: Path, seconds: float, expected: bool) -> None:
    assert Check("step", tmp_path, tmp_path, seconds=seconds).has_time(12) is expected
