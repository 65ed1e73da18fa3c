"""How the cases of an experiment start: on this machine, in the SLURM allocation around it, or as SLURM jobs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brain_dist.common.board import Board
from brain_dist.common.children import signals_delayed
from brain_dist.common.cores import cpu_cores
from brain_dist.errors import UserError
from brain_dist.ranks.threads import threads_of_user
from brain_dist.scalability import slurm_jobs
from brain_dist.scalability.cases import Case
from brain_dist.scalability.experiment import CaseFolder

LOCAL = Path(__file__).resolve().parents[2] / "launch" / "local.py"
STEP = 'source launch/slurm.sh && on_gpus "$@"'
GRACE = 20.0  # seconds from SIGTERM to SIGKILL
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Launcher:
    """How cases start.

    Attributes:
        kind: Processes of this machine, steps of the allocation around this process, or jobs; stored in
            experiment.json.
        ranks_per_node: Number of ranks of a node.
        note: What a node is, for the report.
        threads: CPU threads of a rank on this machine, the same in every case; one rank alone would otherwise take all
            cores.
    """

    kind: Literal["local", "steps", "jobs"]
    ranks_per_node: int
    note: str
    threads: str = ""

    def run(self, cases: Sequence[Case], folder: CaseFolder, board: Board) -> None:
        """Run the cases one after the other; failures are reported on the board.

        Raises:
            KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP arrived; running processes and queued jobs were ended first.
        """
        for case in cases:
            folder.prepare(case)
        with _stop_signals_as_interrupt():
            if self.kind == "jobs":
                slurm_jobs.run(cases, folder, board)
                return
            for case in cases:
                if self.kind == "local":
                    command = [sys.executable, str(LOCAL), "-n", str(case.ranks), "profile", *folder.arguments(case)]
                    environment = {"OMP_NUM_THREADS": self.threads, **os.environ}
                else:
                    command = ["bash", "-c", STEP, "scaling", "profile", *folder.arguments(case)]
                    environment = _step_environment(case)
                board.update(case.name, "running")
                folder.finish(case, _run_process(command, environment, folder.log(case)) == 0, board)


def choose_launcher(kind: str, ranks_per_node: int | None, nodes: Sequence[int], device: str) -> Launcher:
    """Choose and check the launcher.

    Args:
        kind: auto, local or slurm.
        ranks_per_node: None: one per GPU, or one.
        nodes: Numbers of nodes of the experiment.
        device: run.device.

    Raises:
        UserError: SLURM, the scripts, nodes or GPUs are missing.
    """
    allocated = "SLURM_JOB_ID" in os.environ
    if kind == "slurm" and not allocated and not shutil.which("sbatch"):
        raise UserError("--where slurm: not in a SLURM allocation, and sbatch is not on PATH; give --where local")
    if kind == "local" or (kind == "auto" and not allocated and not _belongs_to_cluster()):
        return local_launcher(ranks_per_node, max(nodes), device)
    if not slurm_jobs.SCRIPT.is_file():
        raise UserError(
            f"{slurm_jobs.SCRIPT} does not exist here; start from the root of the checkout, as the nodes do"
        )
    if allocated:
        return _steps_launcher(ranks_per_node, max(nodes))
    note = f"one job of {slurm_jobs.SCRIPT} per case, one at a time"
    return Launcher("jobs", ranks_per_node or slurm_jobs.requested_gpus(), note)


def _belongs_to_cluster() -> bool:
    """Whether a SLURM controller answers; installed programs alone do not show that."""
    if not shutil.which("sbatch"):
        return False
    answer = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False)
    return "Slurmctld" in answer.stdout


def local_launcher(ranks_per_node: int | None, nodes: int, device: str) -> Launcher:
    """Check this machine, of which a node is a part, for up to ``nodes`` nodes and return its launcher.

    Raises:
        UserError: the machine has too few GPUs, OMP_NUM_THREADS is invalid, or launch/local.py is missing.
    """
    import torch

    if not LOCAL.is_file():
        raise UserError(f"{LOCAL} does not exist; run scaling experiments from a checkout of the project")
    gpus, cores = 0 if device == "cpu" else torch.cuda.device_count(), cpu_cores()
    per_node = ranks_per_node or gpus or 1
    ranks = per_node * nodes
    if gpus and ranks > gpus:
        raise UserError(
            f"--nodes {nodes} × {per_node} ranks: this machine has {gpus} GPUs; lower --per-node or --nodes"
        )
    share = str(max(1, cores // ranks))
    if gpus:
        return Launcher("local", per_node, f"one machine with {gpus} GPUs; a node is {per_node} of them", share)
    threads = str(threads_of_user() or share)
    note = f"one machine with {cores} cores and no GPU; a node is {per_node} process{'es' if per_node > 1 else ''}"
    note += f" with {threads} thread{'s' if threads != '1' else ''}{' each' if per_node > 1 else ''}"
    if ranks * int(threads) > cores:
        note += f"; {ranks} ranks share {cores} cores, so these numbers test the machinery and do not measure scaling"
    return Launcher("local", per_node, note, share)


def _steps_launcher(ranks_per_node: int | None, nodes: int) -> Launcher:
    """Check the allocation around this process for up to ``nodes`` nodes and return its launcher."""
    allocated, gpus = int(os.environ.get("SLURM_JOB_NUM_NODES", "1")), _gpus_per_node()
    if nodes > allocated:
        raise UserError(f"--nodes {nodes}: this allocation has {allocated} nodes; give sbatch --nodes={nodes}")
    if gpus and ranks_per_node and ranks_per_node > gpus:
        raise UserError(
            f"--per-node {ranks_per_node}: this allocation has {gpus} GPUs per node; give --per-node {gpus}"
        )
    ranks = ranks_per_node or gpus or int(os.environ.get("SLURM_NTASKS_PER_NODE", "1"))
    return Launcher("steps", ranks, f"steps of SLURM job {os.environ['SLURM_JOB_ID']}, which has {allocated} nodes")


def _step_environment(case: Case) -> dict[str, str]:
    """Variables that make launch/slurm.sh use part of the allocation; the shell of salloc lacks some of them."""
    cores = os.environ.get("SLURM_JOB_CPUS_PER_NODE", "1").split("(")[0]
    ranks = "SLURM_GPUS_ON_NODE" if _gpus_per_node() else "SLURM_NTASKS_PER_NODE"
    size = {"SLURM_NNODES": str(case.nodes), ranks: str(case.ranks_per_node)}
    return {"SLURM_CPUS_ON_NODE": cores, **os.environ, **size}


def _gpus_per_node() -> int:
    """GPUs per node of the allocation; the shell of salloc knows only the request, such as a100:4."""
    value = os.environ.get("SLURM_GPUS_ON_NODE") or os.environ.get("SLURM_GPUS_PER_NODE", "0")
    return int(value.rpartition(":")[2])


@contextlib.contextmanager
def _stop_signals_as_interrupt() -> Iterator[None]:
    """Make SIGTERM and the end of the terminal raise KeyboardInterrupt as Ctrl-C does, so that no case runs on."""
    numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP

    def interrupt(number: int, frame: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)  # a second signal must not disturb the cleanup
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run_process(command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
    """Run a command with its output in ``log`` and return its exit code; an exception here ends its process group."""
    started: list[subprocess.Popen[bytes]] = []
    with log.open("wb") as file:
        try:
            with signals_delayed():
                process = subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
                )
                started.append(process)
            return process.wait()
        except BaseException:
            for process in started:
                _end_group(process)
            raise


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
