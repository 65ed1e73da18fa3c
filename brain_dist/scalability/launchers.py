"""Where the cases of an experiment run: on this machine, in the SLURM allocation around it, or as SLURM jobs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from brain_dist.errors import UserError
from brain_dist.scalability.board import Board
from brain_dist.scalability.case_files import CaseFolder
from brain_dist.scalability.cases import Case
from brain_dist.scalability.local import LocalLauncher, local_launcher
from brain_dist.scalability.process import sigterm_as_interrupt
from brain_dist.scalability.slurm_jobs import SCRIPT, JobsLauncher, jobs_launcher
from brain_dist.scalability.slurm_steps import StepsLauncher, steps_launcher

Launcher = LocalLauncher | StepsLauncher | JobsLauncher


def choose_launcher(where: str, ranks_per_node: int | None, nodes: Sequence[int], device: str) -> Launcher:
    """Choose and check the launcher.

    Args:
        where: auto, local or slurm.
        ranks_per_node: None: one per GPU, or one.
        nodes: Numbers of nodes of the experiment.
        device: run.device.

    Raises:
        UserError: SLURM, the scripts, nodes or GPUs are missing.
    """
    allocated = "SLURM_JOB_ID" in os.environ
    if where == "slurm" and not allocated and not shutil.which("sbatch"):
        raise UserError("--where slurm: not in a SLURM allocation, and sbatch is not on PATH; give --where local")
    if where == "local" or (where == "auto" and not allocated and not _belongs_to_cluster()):
        return local_launcher(ranks_per_node, max(nodes), device)
    if not SCRIPT.is_file():
        raise UserError(f"{SCRIPT} does not exist here; start from the root of the checkout, as the nodes do")
    return steps_launcher(ranks_per_node, max(nodes)) if allocated else jobs_launcher(ranks_per_node)


def _belongs_to_cluster() -> bool:
    """Whether a SLURM controller answers; installed programs alone do not show that."""
    if not shutil.which("sbatch"):
        return False
    answer = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False)
    return "Slurmctld" in answer.stdout


def run_cases(cases: Sequence[Case], launcher: Launcher, folder: CaseFolder, board: Board) -> None:
    """Run the cases one after the other; failures are reported on the board.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM arrived; running processes and queued jobs were ended first.
    """
    for case in cases:
        folder.prepare(case)
    with sigterm_as_interrupt():
        launcher.run(cases, folder, board)
