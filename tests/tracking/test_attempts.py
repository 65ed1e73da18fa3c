"""A requeue loop without progress ends; any other job may restart as often as necessary."""

from __future__ import annotations

from pathlib import Path

import pytest

from brain_dist.errors import Fault
from brain_dist.tracking import attempts


def test_a_job_stops_after_three_attempts_of_one_step_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for step in (0, 40, 41, 42):
        attempts.begin(tmp_path / "run", step)
    with pytest.raises(Fault, match=r"job 7 brought .*run from step 40 to 43.*train.save_every"):
        attempts.begin(tmp_path / "run", 43)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    attempts.begin(tmp_path / "run", 43)
    assert [(row["attempt"], row["job"]) for row in attempts.read(tmp_path / "run")][-2:] == [(5, "7"), (6, "8")]


def test_a_job_with_progress_and_a_run_without_slurm_are_not_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for step in range(0, 100, 2):
        attempts.begin(tmp_path / "slow", step)
    monkeypatch.delenv("SLURM_JOB_ID")
    for _ in range(9):
        attempts.begin(tmp_path / "without_slurm", 0)


def test_an_incomplete_line_is_ignored(tmp_path: Path) -> None:
    attempts.begin(tmp_path, 3)
    with (tmp_path / attempts.FILE).open("a") as file:
        file.write('{"attempt": 2, "st')
    assert [row["step"] for row in attempts.read(tmp_path)] == [3]
    attempts.begin(tmp_path, 5)
    assert [(row["attempt"], row["step"]) for row in attempts.read(tmp_path)] == [(1, 3), (2, 5)]
