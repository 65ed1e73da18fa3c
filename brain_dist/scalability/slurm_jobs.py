"""Cases as SLURM jobs submitted from a login node, one slurm/profile.sh per case."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from brain_dist.common.board import Board
from brain_dist.common.children import signals_delayed
from brain_dist.errors import UserError
from brain_dist.scalability.cases import Case
from brain_dist.scalability.experiment import CaseFolder

SCRIPT = Path("slurm/profile.sh")
ACTIVE_STATES = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING",
                 "STAGE_OUT", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}  # fmt: skip
POLL = 2.0  # seconds between queries to SLURM, which all users share
SYNC_TIME = 60.0  # seconds until a network file system shows what another node wrote


def run(cases: Sequence[Case], folder: CaseFolder, board: Board) -> None:
    """Submit all cases and wait for them; a failure is reported on the board, an exception cancels the jobs.

    Raises:
        UserError: SLURM rejects a job.
    """
    if not cases:
        return
    queue = _Queue(list(cases), folder, board)
    queue.check(max(cases, key=lambda case: case.nodes))
    try:
        while queue.jobs or queue.cases:
            queue.submit()
            time.sleep(POLL)
            queue.update()
    except BaseException:
        if queue.jobs:
            subprocess.run(["scancel", *queue.jobs], check=False)
        raise


def requested_gpus() -> int:
    """GPUs per node that slurm/profile.sh requests."""
    gpus = re.search(r"^#SBATCH --gpus-per-node=(\d+)", SCRIPT.read_text(), re.MULTILINE)
    return int(gpus[1]) if gpus else 1


class _Queue:
    """Cases that are not submitted yet, and submitted jobs that have not ended.

    All jobs have the same name and depend on it (``--dependency=singleton``), so that they run one at a time.
    """

    def __init__(self, cases: list[Case], folder: CaseFolder, board: Board) -> None:
        self.cases, self.folder, self.board = cases, folder, board
        self.jobs: dict[str, Case] = {}
        self.ended_at: dict[str, float] = {}

    def check(self, case: Case) -> None:
        """Raise UserError if SLURM would reject a case."""
        self._sbatch(case, "--test-only")

    def submit(self) -> None:
        """Submit as many cases as SLURM accepts; a limit on jobs per user leaves the others for later."""
        while self.cases:
            case = self.cases[0]
            try:
                with signals_delayed():  # a job whose number is not stored cannot be cancelled
                    job = self._sbatch(case, "--parsable", "--dependency=singleton").split(";")[0]
                    self.jobs[job] = self.cases.pop(0)
            except UserError:
                if not self.jobs:
                    raise
                return
            self.board.update(case.name, "queued")

    def update(self) -> None:
        """Query the states of all jobs and finish the cases of those that have ended."""
        states = _states(self.jobs)
        if states is None:
            return
        for job, case in list(self.jobs.items()):
            state = states.get(job)  # None: the job ended so long ago that SLURM has dropped it
            if state in ACTIVE_STATES:
                self.board.update(case.name, "queued" if state == "PENDING" else "running")
                continue
            ended_at = self.ended_at.setdefault(job, time.monotonic())
            succeeded = state in (None, "COMPLETED")
            late = time.monotonic() - ended_at > SYNC_TIME
            if not succeeded or late or self.folder.read_profile(case):
                del self.jobs[job]
                self.folder.finish(case, succeeded, self.board)

    def _sbatch(self, case: Case, *options: str) -> str:
        name = f"--job-name=scaling-{self.folder.path.parent.name}"
        size = [f"--nodes={case.nodes}", f"--gpus-per-node={case.ranks_per_node}"]
        log = [f"--output={self.folder.log(case)}", "--open-mode=truncate"]
        return slurm_command("sbatch", *options, name, *size, *log, str(SCRIPT), *self.folder.arguments(case)).strip()


def _states(jobs: Iterable[str]) -> dict[str, str] | None:
    """State of every job that SLURM knows; None if SLURM does not answer."""
    command = ["squeue", "--noheader", "--states=all", f"--jobs={','.join(jobs)}", "--format=%i %T"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return None
    return dict(line.split() for line in answer.stdout.splitlines())


def slurm_command(*command: str) -> str:
    """Run one of SLURM's commands and return what it prints.

    Raises:
        UserError: it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or [f"exit code {done.returncode}"]
        raise UserError(f"`{shlex.join(command[:6])} …` failed: {errors[-1]}")
    return done.stdout
