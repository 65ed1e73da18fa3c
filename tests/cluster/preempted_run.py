"""Train on a real SLURM of this machine, preempt the job once, and evaluate the finished run.

``python tests/cluster/preempted_run.py SHARDS RUNS STEP [SETTING VALUE …]``, as root. Submits slurm/train_convnext.sh
on two nodes and slurm/evaluate.sh after it and, once STEP is logged, a job in a partition with a higher priority.
Prints the submitted commands and the logs of the jobs. The run is RUNS/convnext.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from helpers import read_metrics
from private_slurm import ENDED, Cluster, missing_programs

TIMEOUT = 3600.0  # seconds for all jobs


def main() -> int:
    """Parse the arguments and run the jobs in a private cluster; exit code 0 if all went as described above."""
    if len(sys.argv) < 4 or not sys.argv[3].isdigit():
        print(__doc__)
        return 2
    if missing := missing_programs():
        print(f"error: SLURM is not installed ({missing} missing): apt-get install slurm-wlm munge", file=sys.stderr)
        return 2
    shards, runs = (Path(argument).resolve() for argument in sys.argv[1:3])
    step, settings = int(sys.argv[3]), sys.argv[4:]
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            return PreemptedRun(cluster, shards, runs / "convnext").execute(step, settings)
        finally:
            cluster.stop()


class PreemptedRun:
    """The three jobs of this script."""

    def __init__(self, cluster: Cluster, shards: Path, run: Path) -> None:
        self.cluster, self.shards, self.run = cluster, shards, run
        run.parent.mkdir(parents=True, exist_ok=True)

    def execute(self, step: int, settings: list[str]) -> int:
        """Submit the jobs, preempt the training after ``step``, wait for the end; return the exit code."""
        start = time.monotonic()
        paths = ["--data.shards", str(self.shards), "--run.dir", str(self.run.parent), "--run.name", self.run.name]
        train = self.submit("train", "--nodes=2", "--gpus-per-node=1", "slurm/train_convnext.sh", *settings, *paths)
        after_train = f"--dependency=afterok:{train}"
        evaluate = self.submit("evaluate", after_train, "slurm/evaluate.sh", str(self.run), "--device", "cpu")
        preempted = False
        while self.cluster.state(evaluate) not in ENDED and time.monotonic() - start < TIMEOUT:
            time.sleep(1)
            state = self.cluster.state(train)
            if state in ENDED and state != "COMPLETED":
                break
            if not preempted and self.last_step() >= step:
                self.preempt(train)
                preempted = True
        states = [self.report("train", train), self.report("evaluate", evaluate)]
        restarts, seconds = self.cluster.restarts(train), time.monotonic() - start
        print(f"requeues of job {train}: {restarts}; {seconds:.0f} s from its submission to the end")
        return int(states != ["COMPLETED", "COMPLETED"] or restarts != 1)

    def submit(self, name: str, *arguments: str) -> str:
        """Submit a job, print the command and return the job's number."""
        arguments = (f"--output={self.log(name)}", *arguments)
        job = self.cluster.sbatch(*arguments)
        print(f"$ sbatch {shlex.join(arguments)}   → job {job}", flush=True)
        return job

    def preempt(self, job: str) -> None:
        """Submit a job with a higher priority to the nodes of ``job``."""
        nodes = ("--partition=urgent", f"--nodelist={self.cluster.nodes(job)}", "--nodes=2", "--exclusive")
        self.submit("urgent", *nodes, "--wrap", "echo this partition has a higher priority; sleep 5")

    def last_step(self) -> int:
        """The last training step that the run has logged; -1 before the first."""
        rows = [row for row in read_metrics(self.run / "metrics.jsonl") if row["kind"] == "train"]
        return rows[-1]["step"] if rows else -1

    def report(self, name: str, job: str) -> str:
        """Print the log of a job and return the job's state."""
        state, log = self.cluster.state(job), self.log(name)
        print(f"\n---- {name}: {state}")
        print(log.read_text() if log.exists() else "no log")
        return state

    def log(self, name: str) -> Path:
        """Log file of a job."""
        return self.run.parent / f"{name}.log"


if __name__ == "__main__":
    sys.exit(main())
