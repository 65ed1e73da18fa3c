"""How many threads each rank computes with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from helpers import ROOT, TINY, environment

from brain_dist.errors import UserError
from brain_dist.ranks.threads import choose_threads
from brain_dist.ranks.world import World

STEP = {"SLURM_STEP_NUM_TASKS": "4"}


@pytest.fixture(autouse=True)
def machine_with_16_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    for name in ("OMP_NUM_THREADS", "SLURM_STEP_NUM_TASKS", "SLURM_CPUS_ON_NODE", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)


def rank_of(local_size: int, launcher: str = "environment") -> World:
    return World(0, local_size, 0, local_size, "127.0.0.1", 0, launcher)


@pytest.mark.parametrize(
    ("world", "loading", "variables", "text"),
    [
        (rank_of(1, "alone"), 0, {}, "16 threads (16 cores)"),
        (rank_of(1, "alone"), 2, {}, "14 threads (16 cores, 2 for loading)"),
        (rank_of(4), 2, {}, "3 threads (16 cores for 4 ranks, 1 for loading)"),
        (rank_of(8), 2, {}, "2 threads (16 cores for 8 ranks)"),
        (rank_of(32), 2, {}, "1 thread (16 cores for 32 ranks)"),
        (rank_of(4), 2, {"OMP_NUM_THREADS": "5,1"}, "5 threads (OMP_NUM_THREADS)"),
        (rank_of(2), 0, {"SLURM_CPUS_ON_NODE": "6"}, "3 threads (6 cores by SLURM for 2 ranks)"),
        # each rank of srun is a task; a cluster may bind it to its cores or leave all to it
        (rank_of(4, "srun"), 0, {**STEP, "SLURM_CPUS_PER_TASK": "3"}, "3 threads (3 cores by SLURM)"),
        (rank_of(4, "srun"), 0, {**STEP, "SLURM_CPUS_ON_NODE": "8"}, "2 threads (2 cores by SLURM)"),
        (rank_of(2, "srun"), 0, {**STEP, "SLURM_CPUS_ON_NODE": "64"}, "16 threads (16 cores)"),
    ],
)  # fmt: skip
def test_a_rank_gets_its_share_of_the_cores(
    world: World, loading: int, variables: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(choose_threads(world, loading)) == text


@pytest.mark.parametrize("value", ["none", "0", "-1", ","])
def test_a_wrong_omp_num_threads_is_one_line(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(UserError, match=f"OMP_NUM_THREADS={value}: must be a positive integer"):
        choose_threads(rank_of(1))


@pytest.mark.slow
def test_ranks_bound_to_one_core_compute_with_one_thread_and_wait_asleep(phantom_shards: Path, tmp_path: Path) -> None:
    variables = environment(OMP_DISPLAY_ENV="TRUE")  # OpenMP prints its settings when it is loaded
    del variables["OMP_NUM_THREADS"]
    variables.pop("OMP_WAIT_POLICY", None)
    settings = [*TINY, "--data.shards", str(phantom_shards), "--run.dir", str(tmp_path), "--train.epochs", "1"]
    core = int(subprocess.check_output([sys.executable, "-c", "import os; print(min(os.sched_getaffinity(0)))"]))
    result = subprocess.run(
        [sys.executable, "launch/local.py", "-n", "2", "train", *settings], cwd=ROOT, env=variables, check=False,
        preexec_fn=partial(os.sched_setaffinity, 0, {core}), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in result.stderr
    assert "OMP_WAIT_POLICY = 'ACTIVE'" not in result.stderr
    assert "2 × cpu (environment) with 1 thread (1 core for 2 ranks), batch" in result.stderr
    stored = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert (stored["threads"], stored["threads_reason"]) == (1, "1 core for 2 ranks")
