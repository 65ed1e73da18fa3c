"""A requeue loop that gains nothing ends, whoever requeues; anything else may come back as often as it likes."""

from __future__ import annotations

from pathlib import Path

import pytest

from brain_dist.errors import Fault
from brain_dist.tracking import attempts


def test_three_attempts_of_a_job_that_made_a_step_each_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for step in (0, 40, 41, 42):
        attempts.begin(tmp_path / "run", step)
    with pytest.raises(Fault, match=r"job 7 brought .*run from step 40 to 43.*train.save_every"):
        attempts.begin(tmp_path / "run", 43)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    attempts.begin(tmp_path / "run", 43)
    assert [(row["attempt"], row["job"]) for row in attempts.read(tmp_path / "run")][-2:] == [(5, "7"), (6, "8")]


def test_a_job_that_gets_on_and_a_run_without_slurm_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for step in range(0, 100, 2):
        attempts.begin(tmp_path / "slow", step)
    monkeypatch.delenv("SLURM_JOB_ID")
    for _ in range(9):
        attempts.begin(tmp_path / "alone", 0)


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    attempts.begin(tmp_path, 3)
    with (tmp_path / attempts.FILE).open("a") as file:
        file.write('{"attempt": 2, "st')
    assert [row["step"] for row in attempts.read(tmp_path)] == [3]
