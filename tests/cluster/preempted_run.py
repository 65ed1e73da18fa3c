"""A training pre-empted once on a real SLURM of this machine, requeued by itself, finished and evaluated.

``python tests/cluster/preempted_run.py SHARDS RUNS STEP [SETTING VALUE …]`` as root. The jobs are
slurm/train_convnext.sh on two nodes, slurm/evaluate.sh after it and, once STEP was made, another one in a better
partition. Prints what was submitted and what the jobs said; the run is RUNS/convnext.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import read_metrics
from private_slurm import ENDED, Cluster, missing

MOST = 3600.0  # seconds that the jobs may take


def main() -> int:
    """Submit, pre-empt, wait; the exit code is 0 where all of it went as told above."""
    if len(sys.argv) < 4 or not sys.argv[3].isdigit():
        print(__doc__)
        return 2
    if absent := missing():
        print(f"error: SLURM is not installed ({absent} missing): apt-get install slurm-wlm munge", file=sys.stderr)
        return 2
    shards, runs = (Path(word).resolve() for word in sys.argv[1:3])
    run, step, settings = runs / "convnext", int(sys.argv[3]), sys.argv[4:]
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            return jobs(cluster, shards, run, step, settings)
        finally:
            cluster.stop()


def jobs(cluster: Cluster, shards: Path, run: Path, step: int, settings: list[str]) -> int:
    """All three jobs; see the module's text."""
    run.parent.mkdir(parents=True, exist_ok=True)
    logs = {name: run.parent / f"{name}.log" for name in ("train", "evaluate", "urgent")}
    where = ["--data.shards", str(shards), "--run.dir", str(run.parent), "--run.name", run.name]

    def submit(name: str, *words: str) -> str:
        words = (f"--output={logs[name]}", *words)
        job = cluster.sbatch(*words)
        print(f"$ sbatch {shlex.join(words)}   → job {job}", flush=True)
        return job

    began = time.monotonic()
    train = submit("train", "--nodes=2", "--gpus-per-node=1", "slurm/train_convnext.sh", *settings, *where)
    after = f"--dependency=afterok:{train}"
    evaluate = submit("evaluate", after, "slurm/evaluate.sh", str(run), "--device", "cpu")
    urgent = ""
    while cluster.state(evaluate) not in ENDED and time.monotonic() - began < MOST:
        time.sleep(1)
        if cluster.state(train) in ENDED and cluster.state(train) != "COMPLETED":
            break
        rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"]
        if not urgent and rows and rows[-1]["step"] >= step:
            nodes = ("--partition=urgent", f"--nodelist={cluster.nodes(train)}", "--nodes=2", "--exclusive")
            urgent = submit("urgent", *nodes, "--wrap", "echo this partition is the better one; sleep 5")
    states = {name: cluster.state(job) for name, job in (("train", train), ("evaluate", evaluate))}
    restarts = cluster.restarts(train)
    for name in ("train", "evaluate"):
        print(f"\n---- {name}: {states[name]}")
        print(logs[name].read_text() if logs[name].exists() else "no log")
    print(f"requeues of job {train}: {restarts}; {time.monotonic() - began:.0f} s from its submission to the end")
    return int(any(state != "COMPLETED" for state in states.values()) or restarts != 1)


if __name__ == "__main__":
    sys.exit(main())
