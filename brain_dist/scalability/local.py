"""Cases as processes of this machine, started by launch/local.py one case after the other."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from brain_dist.errors import UserError
from brain_dist.scalability.board import Board
from brain_dist.scalability.case_files import CaseFolder
from brain_dist.scalability.cases import Case
from brain_dist.scalability.process import run_process

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "local.py"


@dataclass(frozen=True)
class LocalLauncher:
    """Launcher for this machine, of which a node is a part.

    Attributes:
        kind: Stored in experiment.json.
        ranks_per_node: Number of ranks of a node.
        threads: CPU threads of a rank, the same in every case; one rank alone would otherwise take all cores.
        note: What a node is, for the report.
    """

    kind: ClassVar[Literal["local"]] = "local"
    ranks_per_node: int
    threads: str
    note: str

    def run(self, cases: Sequence[Case], folder: CaseFolder, board: Board) -> None:
        """Run the cases; a failure is reported on the board."""
        for case in cases:
            command = [sys.executable, str(SCRIPT), "-n", str(case.ranks), "profile", *folder.arguments(case)]
            board.update(case, "running")
            code = run_process(command, {"OMP_NUM_THREADS": self.threads, **os.environ}, folder.log(case))
            folder.finish(case, code == 0, board)


def local_launcher(ranks_per_node: int | None, nodes: int, device: str) -> LocalLauncher:
    """Check this machine and return its launcher.

    Args:
        ranks_per_node: None: one per GPU, or one.
        nodes: Largest number of nodes.
        device: run.device.

    Raises:
        UserError: the machine has too few GPUs, OMP_NUM_THREADS is invalid, or launch/local.py is missing.
    """
    import torch

    if not SCRIPT.is_file():
        raise UserError(f"{SCRIPT} does not exist; run scaling experiments from a checkout of the project")
    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    cores = len(os.sched_getaffinity(0))
    per_node = ranks_per_node or gpus or 1
    ranks = per_node * nodes
    if gpus and ranks > gpus:
        raise UserError(
            f"--nodes {nodes} × {per_node} ranks: this machine has {gpus} GPUs; lower --per-node or --nodes"
        )
    share = str(max(1, cores // ranks))
    if gpus:
        return LocalLauncher(per_node, share, f"one machine with {gpus} GPUs; a node is {per_node} of them")
    threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0] or share  # OpenMP: one number per nesting level
    if not threads.isdecimal() or threads == "0":
        raise UserError(f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}: must be a positive integer")
    note = f"one machine with {cores} cores and no GPU; a node is {per_node} process{'es' if per_node > 1 else ''}"
    note += f" with {threads} thread{'s' if threads != '1' else ''}{' each' if per_node > 1 else ''}"
    if ranks * int(threads) > cores:
        note += f"; {ranks} ranks share {cores} cores, so these numbers test the machinery and do not measure scaling"
    return LocalLauncher(per_node, share, note)
