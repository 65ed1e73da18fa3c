"""The cores that a process may use: affinity, quotas of control groups, SLURM."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from helpers import ROOT, environment

from brain_dist.common.cores import core_limits

PRINT = "from brain_dist.common.cores import core_limits; print(core_limits())"
CONTROLLER = Path("/sys/fs/cgroup/cpu")  # of version 1
CORES = len(os.sched_getaffinity(0))


def limits_of_process(prepare: partial[None], **variables: str) -> dict[str, int]:
    """What a new process finds, after ``prepare`` has run in it."""
    result = subprocess.run(
        [sys.executable, "-c", PRINT], cwd=ROOT, env=environment(**variables), preexec_fn=prepare,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    limits: dict[str, int] = eval(result.stdout)
    return limits


def test_affinity_limits_a_process() -> None:
    one = min(os.sched_getaffinity(0))
    assert limits_of_process(partial(os.sched_setaffinity, 0, {one}))["affinity"] == 1


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A control group of version 1 with a quota of half a core, inside one without a quota."""
    group = CONTROLLER / f"brain-dist-{os.getpid()}"
    try:
        (group / "inner").mkdir(parents=True)
    except OSError:
        pytest.skip("control groups of version 1 cannot be created here")
    try:
        (group / "cpu.cfs_quota_us").write_text("50000")
        yield group / "inner"
    finally:
        (group / "inner").rmdir()
        group.rmdir()


def test_the_quota_of_a_real_control_group_limits_a_process(half_a_core: Path) -> None:
    enter = partial(os.system, f"echo $PPID > {half_a_core}/cgroup.procs")
    assert limits_of_process(enter)["cgroup quota"] == 1


V1, V2 = "4:memory:/\n2:cpu,cpuacct:/slurm/job_7/step_0\n0::/\n", "0::/user.slice/job.scope\n"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        (V2, {"cpu.max": "max 100000"}, None),
        (V2, {"user.slice/job.scope/cpu.max": "250000 100000"}, 2),
        (V2, {"user.slice/job.scope/cpu.max": "800000 100000", "user.slice/cpu.max": "300000 100000"}, 3),
        (V2, {"cpu.max": "150000 100000"}, 1),  # a container sees its own group at the root
        (V2, {"user.slice/job.scope/cpu.max": "5000 100000"}, 1),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, None),
        (V1, {"cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us": "400000",
              "cpu,cpuacct/slurm/job_7/cpu.cfs_period_us": "100000"}, 4),
        (V1.replace("cpu,cpuacct", "cpuacct,cpu"),
         {"cpu/slurm/job_7/cpu.cfs_quota_us": "400000", "cpu/slurm/job_7/cpu.cfs_period_us": "100000"}, 4),
        ("", {}, None),
    ],
)  # fmt: skip
def test_quotas_of_both_versions_are_read(
    groups: str, files: dict[str, str], quota: int | None, tmp_path: Path
) -> None:
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{file}": t for file, t in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert core_limits(tmp_path).get("cgroup quota") == quota


def test_without_proc_only_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    assert core_limits(tmp_path) == {"affinity": CORES}


@pytest.mark.parametrize(
    ("variables", "cores"),
    [
        ({"SLURM_CPUS_ON_NODE": "6", "SLURM_CPUS_PER_TASK": "3"}, 6),  # a batch script, whose ranks share the job's
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_CPUS_ON_NODE": "6", "SLURM_CPUS_PER_TASK": "3"}, 3),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_CPUS_ON_NODE": "6"}, math.inf),
    ],
)
def test_slurm_limits_a_step_and_a_job(
    variables: dict[str, str], cores: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_CPUS_ON_NODE", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert core_limits(tmp_path).get("SLURM", math.inf) == cores
