"""Cases as steps of the SLURM allocation around this process, started by the functions of launch/slurm.sh."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from brain_dist.errors import UserError
from brain_dist.scalability.board import Board
from brain_dist.scalability.case_files import CaseFolder
from brain_dist.scalability.cases import Case
from brain_dist.scalability.process import run_process

STEP = 'source launch/slurm.sh && on_gpus "$@"'


@dataclass(frozen=True)
class StepsLauncher:
    """Launcher inside an allocation; ``note`` describes the allocation for the report."""

    kind: ClassVar[Literal["steps"]] = "steps"
    ranks_per_node: int
    note: str

    def run(self, cases: Sequence[Case], folder: CaseFolder, board: Board) -> None:
        """Run the cases one after the other; a failure is reported on the board."""
        for case in cases:
            command = ["bash", "-c", STEP, "scaling", "profile", *folder.arguments(case)]
            board.update(case, "running")
            code = run_process(command, self._environment(case), folder.log(case))
            folder.finish(case, code == 0, board)

    def _environment(self, case: Case) -> dict[str, str]:
        """Variables that make launch/slurm.sh use part of the allocation; the shell of salloc lacks some of them."""
        cores = os.environ.get("SLURM_JOB_CPUS_PER_NODE", "1").split("(")[0]
        ranks = "SLURM_GPUS_ON_NODE" if gpus_per_node(os.environ) else "SLURM_NTASKS_PER_NODE"
        return {
            "SLURM_CPUS_ON_NODE": cores,
            **os.environ,
            "SLURM_NNODES": str(case.nodes),
            ranks: str(self.ranks_per_node),
        }


def steps_launcher(ranks_per_node: int | None, nodes: int) -> StepsLauncher:
    """Check the allocation and return its launcher.

    Args:
        ranks_per_node: None: one per GPU, or one per task.
        nodes: Largest number of nodes.

    Raises:
        UserError: the allocation has too few nodes or GPUs.
    """
    environment = os.environ
    allocated = int(environment.get("SLURM_JOB_NUM_NODES", "1"))
    if nodes > allocated:
        raise UserError(f"--nodes {nodes}: this allocation has {allocated} nodes; give sbatch --nodes={nodes}")
    gpus = gpus_per_node(environment)
    if gpus and ranks_per_node and ranks_per_node > gpus:
        raise UserError(
            f"--per-node {ranks_per_node}: this allocation has {gpus} GPUs per node; give --per-node {gpus}"
        )
    ranks = ranks_per_node or gpus or int(environment.get("SLURM_NTASKS_PER_NODE", "1"))
    return StepsLauncher(ranks, f"steps of SLURM job {environment['SLURM_JOB_ID']}, which has {allocated} nodes")


def gpus_per_node(environment: Mapping[str, str]) -> int:
    """GPUs per node of the allocation; the shell of salloc knows only the request, such as a100:4."""
    value = environment.get("SLURM_GPUS_ON_NODE") or environment.get("SLURM_GPUS_PER_NODE", "0")
    return int(value.rpartition(":")[2])
