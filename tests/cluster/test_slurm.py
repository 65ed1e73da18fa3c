"""The very scripts of slurm/, submitted to a real SLURM of four nodes; a tiny network on the CPU, chosen by hand."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
import yaml
from conftest import ROOT, TINY, command, losses
from private_slurm import Cluster, missing, wait_for
from wandb_files import history

from brain_dist.scalability import results

pytestmark = pytest.mark.timeout(900)  # jobs wait for jobs, and for SLURM's own clocks
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
TRAINING = [
    *(*TINY, "--run.device", "cpu", "--model.pretrained", "false", "--model.drop_path", "0"),
    *("--train.precision", "fp32", "--train.global_batch", "24", "--train.eval_every", "0", "--optim.lr", "1e-3"),
]
STEPS = 40
LONG = [*TRAINING, "--train.micro_batch", "4", "--train.epochs", "8", "--train.save_every", "15"]


class Jobs:
    """Submits scripts, each job with a log and a run of its own."""

    def __init__(self, cluster: Cluster, shards: Path, at: Path) -> None:
        self.cluster, self.shards, self.at = cluster, shards, at

    def train(self, name: str, *options: str, settings: list[str] | None = None) -> str:
        """train_convnext.sh on one GPU of two nodes, unless the options say otherwise."""
        where = ["--data.shards", str(self.shards), "--run.dir", str(self.at), "--run.name", name]
        words = ["--nodes=2", "--gpus-per-node=1", *options, f"--output={self.log(name)}", "slurm/train_convnext.sh"]
        return self.cluster.sbatch(*words, *(settings or LONG), *where)

    def log(self, name: str) -> Path:
        return self.at / f"{name}.log"

    def said(self, name: str) -> str:
        return self.log(name).read_text()

    def held(self, name: str, *options: str, settings: list[str] | None = None, step: int = 20) -> str:
        """A job whose tasks were stopped in the middle, after ``step`` at the earliest."""
        job = self.train(name, *options, settings=settings)
        self.cluster.reach(self.at / name, job, step, log=self.log(name))
        assert len(losses(self.at / name)) < STEPS, "too late for the middle"
        return job

    def end(self, job: str, name: str, state: str = "COMPLETED") -> None:
        self.cluster.wait(job, log=self.log(name), state=state)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four idle nodes with four stand-in GPUs each."""
    if absent := missing():
        pytest.skip(f"SLURM is not installed ({absent} missing): apt-get install slurm-wlm munge")
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def jobs(cluster: Cluster, phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs(cluster, phantom_shards, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def limited(jobs: Jobs) -> str:
    """A job whose time runs out in the middle. SLURM looks every 30 s only, so the undisturbed run goes meanwhile."""
    job = jobs.held("limited", "--nodelist=n3,n4")
    minutes = jobs.cluster.minutes(job) + 5  # the script's --signal=B:USR1@300 is due from now on
    jobs.cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")

    def give_time() -> None:  # once it is warned, before its time is really over: the next attempt needs some
        wait_for(lambda: "SLURM asks to stop" in jobs.said("limited"), 240, "the warning before the time limit")
        jobs.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")

    Thread(target=give_time, daemon=True).start()
    return job


@pytest.fixture(scope="module")
def array(jobs: Jobs) -> str:
    """Two of the baselines' array."""
    return jobs.cluster.sbatch(
        *("--array=2,4", "--gpus-per-node=1", f"--output={jobs.log('array')}", "slurm/train_baselines.sh"),
        *(*TRAINING, "--model.name", "test_efficientnet", "--train.micro_batch", "12", "--train.epochs", "1"),
        *("--data.shards", str(jobs.shards), "--run.dir", str(jobs.at / "array")),
    )


@pytest.fixture(scope="module")
def chain(jobs: Jobs, phantom_shards: Path) -> dict[str, str]:
    """Build, then train on four nodes, then evaluate; each waits for the one before."""
    images, shards = phantom_shards.parent / "images", jobs.at / "chained"
    words = [f"--output={jobs.log('build')}", "slurm/build_shards.sh"]
    build = jobs.cluster.sbatch(*words, "--source", str(images), "--out", str(shards), "--workers", "2")
    settings = [*TRAINING, "--train.micro_batch", "2", "--train.epochs", "1", "--data.shards", str(shards)]
    words = ["--nodes=4", "--gpus-per-node=1", f"--output={jobs.log('chain')}", "slurm/train_convnext.sh"]
    where = ["--run.dir", str(jobs.at), "--run.name", "chain"]
    train = jobs.cluster.sbatch(f"--dependency=afterok:{build}", *words, *settings, *where)
    words = [f"--dependency=afterok:{train}", f"--output={jobs.log('evaluate')}", "slurm/evaluate.sh"]
    evaluate = jobs.cluster.sbatch(*words, str(jobs.at / "chain"), "--device", "cpu")
    assert jobs.cluster.state(evaluate) == "PENDING"
    return {"build": build, "chain": train, "evaluate": evaluate}


@pytest.fixture(scope="module")
def undisturbed(jobs: Jobs, limited: str, array: str, chain: dict[str, str]) -> Path:
    """What the disturbed runs are compared with; ``array`` and ``chain`` run beside it while ``limited`` waits."""
    jobs.end(jobs.train("undisturbed"), "undisturbed")
    assert len(losses(jobs.at / "undisturbed")) == STEPS
    return jobs.at / "undisturbed"


def same(run: Path, undisturbed: Path) -> None:
    """Every loss, and the final weights and their average to the byte."""
    assert losses(run) == losses(undisturbed)
    for name in ("model.safetensors", "ema.safetensors"):
        ours, theirs = (r / "checkpoints" / f"{STEPS:08d}" / name for r in (run, undisturbed))
        assert ours.read_bytes() == theirs.read_bytes()


def test_every_script_is_accepted_as_it_is_and_answers_a_wrong_start(cluster: Cluster, tmp_path: Path) -> None:
    assert len(SCRIPTS) >= 4
    for script in SCRIPTS:
        cluster.run("sbatch", "--test-only", str(script))
    by_hand = command(["bash", str(SCRIPTS[0])], expect=2)
    assert "are for sbatch" in by_hand.err
    job = cluster.sbatch(f"--chdir={tmp_path}", f"--output={tmp_path}/log", str(SCRIPTS[0]))
    cluster.wait(job, log=tmp_path / "log", state="FAILED")
    assert "launch/slurm.sh" in (tmp_path / "log").read_text()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    command(["shellcheck", "--external-sources", *map(str, SCRIPTS), *map(str, (ROOT / "launch").glob("*.sh"))])


def test_two_nodes_train_to_the_end(jobs: Jobs, undisturbed: Path) -> None:
    facts = json.loads((undisturbed / "environment.json").read_text())
    assert (facts["world_size"], facts["launcher"]) == (2, "srun")
    assert losses(undisturbed)[-1] < losses(undisturbed)[0]
    assert "2 × cpu (srun)" in jobs.said("undisturbed")


def test_stopped_by_the_time_limit_it_saves_and_comes_back(jobs: Jobs, limited: str, undisturbed: Path) -> None:
    wait_for(lambda: jobs.cluster.time_limit(limited) == "01:00:00", 240, "the warning before the time limit")
    assert "SLURM asks to stop" in jobs.said("limited")
    jobs.cluster.signal_tasks(limited, signal.SIGCONT)
    jobs.end(limited, "limited")
    assert jobs.cluster.restarts(limited) == 1
    assert "stopped after a clean save; back in the queue" in jobs.said("limited")
    same(jobs.at / "limited", undisturbed)


def test_an_array_of_baselines(jobs: Jobs, array: str) -> None:
    for task in (2, 4):
        jobs.cluster.wait(f"{array}_{task}", log=jobs.log("array"))
    settings = [
        yaml.safe_load((jobs.at / "array" / name / "config.yaml").read_text())
        for name in ("resnet50-2", "efficientnet_b0-1")
    ]
    assert [one["run"]["seed"] for one in settings] == [2, 1]
    assert [one["track"]["group"] for one in settings] == ["resnet50", "efficientnet_b0"]


def test_build_then_train_on_four_nodes_then_evaluate(jobs: Jobs, chain: dict[str, str]) -> None:
    for name, job in chain.items():
        jobs.end(job, name)
    run = jobs.at / "chain"
    assert json.loads((run / "environment.json").read_text())["world_size"] == 4
    judged = json.loads((run / "predictions" / "test.json").read_text())
    assert judged["n"] == 30


def test_a_container_is_one_variable(jobs: Jobs, phantom_shards: Path, tmp_path: Path) -> None:
    # Debian has no container runtime: this stands where apptainer would, says its words, and runs what it was given
    (tmp_path / "apptainer").write_text(
        '#!/bin/bash\necho "apptainer $*"; while [[ $1 != *.sif ]]; do shift; done\n"${@:2}"'
    )
    (tmp_path / "apptainer").chmod(0o755)
    variables = f"PATH={tmp_path}:{jobs.cluster.env['PATH']},BRAIN_DIST_CONTAINER=apptainer:brain.sif"
    words = [f"--export=ALL,{variables}", f"--output={jobs.log('inside')}", "slurm/build_shards.sh"]
    images, out = phantom_shards.parent / "images", jobs.at / "inside"
    jobs.end(jobs.cluster.sbatch(*words, "--source", str(images), "--out", str(out), "--workers", "2"), "inside")
    assert f"apptainer exec --nv --bind {ROOT} --pwd {ROOT} brain.sif {sys.executable} -m brain_dist.shard build" in (
        jobs.said("inside")
    )
    assert (out / "manifest.json").read_bytes() == (phantom_shards / "manifest.json").read_bytes()

    words = [
        "--export=ALL,BRAIN_DIST_CONTAINER=docker:brain",
        f"--output={jobs.log('docker')}",
        "slurm/build_shards.sh",
    ]
    jobs.end(jobs.cluster.sbatch(*words), "docker", "FAILED")
    assert "needs apptainer:IMAGE or pyxis:IMAGE" in jobs.said("docker")


def scaling(out: Path, shards: Path, *words: str) -> list[str]:
    """Words of the verb: strong scaling of one model, measured once over one step."""
    few = ["--mode", "strong", "--steps", "1", "--repeats", "1", "--train.micro_batch", "24"]
    return [*words, "--out", str(out), *TRAINING, *few, "--data.shards", str(shards)]


def test_a_scaling_experiment_is_one_job_whose_cases_are_its_steps(jobs: Jobs) -> None:
    out, log = jobs.at / "scaling", f"--output={jobs.log('scaling')}"
    words = scaling(out, jobs.shards, "--nodes", "1,2")
    job = jobs.cluster.sbatch("--nodes=2", "--gpus-per-node=1", log, "slurm/scaling.sh", *words)
    jobs.end(job, "scaling")
    rows = results.read(out / "scaling.parquet")
    cut = [(r["nodes"], r["ranks"], r["global_batch"], r["micro_batch"], r["micros"]) for r in rows]
    assert cut == [(1, 1, 24, 24, 1), (2, 2, 24, 12, 1)]
    assert [row["bytes_sent"] > 0 for row in rows] == [False, True]
    assert "| 2 | 2 | 24 = 12 × 1 × 2 |" in (out / "scaling.md").read_text()
    # step 0 was on the first node alone, whose address all ranks have
    first, second = jobs.cluster.nodes(job).replace("n[", "").rstrip("]").replace("-", ",").split(",")
    took = [(jobs.cluster.at / f"slurmd-n{n}.log").read_text() for n in (first, second)]
    assert [[f"StepId={job}.{step}" in text for step in (0, 1)] for text in took] == [[True, True], [False, True]]


def test_from_a_login_node_each_case_is_a_job_that_goes_with_an_interrupted_verb(jobs: Jobs) -> None:
    out = jobs.at / "login"
    words = scaling(out, jobs.shards, "--nodes", "1", "--per-node", "1")
    began = [sys.executable, "-m", "brain_dist.scaling", "run", *words]
    asked = ["squeue", "--noheader", "--states=all", "--name=scaling-login", "--format=%i"]

    def jobs_of_it() -> list[str]:
        return jobs.cluster.run(*asked).split()

    interrupted = subprocess.Popen(began, cwd=ROOT, env=jobs.cluster.env, stderr=subprocess.PIPE, text=True)
    wait_for(jobs_of_it, 120, "a job of the experiment")
    interrupted.send_signal(signal.SIGTERM)
    assert "interrupted: 0 of 1 cases are kept" in interrupted.communicate(timeout=60)[1]
    assert interrupted.returncode == 130
    (job,) = jobs_of_it()
    wait_for(lambda: jobs.cluster.state(job) == "CANCELLED", 60, f"the end of job {job}")

    done = command(began, **jobs.cluster.env)
    assert "strong-test_convnext-zero2-1x1-r0 done" in done.err
    (row,) = results.read(out / "scaling.parquet")
    assert row["images_per_s"] > 0
    assert len(jobs_of_it()) == 2


def test_preempted_by_a_better_partition_it_saves_and_comes_back(jobs: Jobs, undisturbed: Path) -> None:
    # SLURM's SIGTERM reaches every process of the step, W&B's own too
    job = jobs.held("preempted", "--nodelist=n1,n2", settings=[*LONG, "--track.wandb", "offline"])
    urgent = jobs.cluster.sbatch(
        *("--partition=urgent", "--nodelist=n1,n2", "--nodes=2", "--exclusive"),
        *(f"--output={jobs.log('urgent')}", "--wrap", "echo mine"),
    )
    jobs.end(urgent, "urgent")
    jobs.end(job, "preempted")
    assert jobs.cluster.restarts(job) == 1
    said = jobs.said("preempted")
    assert "stopped after a clean save; back in the queue" in said
    assert "attempt 2" in said
    assert "Traceback" not in said
    folders = sorted((jobs.at / "preempted" / "wandb").glob("offline-run-*"))
    assert all((folder / "FINISHED").exists() for folder in folders)
    rows = [row for folder in folders for row in history(folder) if "train/loss" in row]
    told = [row["step"] for row in rows]
    assert told == sorted(set(told))
    stopped = int(re.search(r"resuming at step (\d+)", said)[1])  # type: ignore[index]
    assert stopped > 20, "a checkpoint of its own, after the one at step 15"
    # the last rows may lie in the pipe when W&B's process goes; metrics.jsonl has them
    assert set(range(STEPS)) - set(told) <= set(range(stopped - 5, stopped))
    same(jobs.at / "preempted", undisturbed)


def test_requeued_by_an_operator_it_goes_on_from_the_last_checkpoint(jobs: Jobs, undisturbed: Path) -> None:
    job = jobs.held("requeued", "--nodelist=n1,n2")
    jobs.cluster.run("scontrol", "requeue", job)
    jobs.end(job, "requeued")
    assert jobs.cluster.restarts(job) == 1
    assert "resuming at step" in jobs.said("requeued")
    same(jobs.at / "requeued", undisturbed)


def test_what_must_not_come_back_does_not(jobs: Jobs) -> None:
    wrong = jobs.train("wrong", settings=[*LONG, "--train.global_batch", "21"])
    cancelled = jobs.held("cancelled")
    jobs.cluster.run("scancel", cancelled)
    jobs.end(cancelled, "cancelled", "CANCELLED")
    jobs.end(wrong, "wrong", "FAILED")
    assert "train.global_batch=21" in jobs.said("wrong")
    for job, name in ((wrong, "wrong"), (cancelled, "cancelled")):
        assert jobs.cluster.restarts(job) == 0
        assert "back in the queue" not in jobs.said(name)


def test_a_node_that_dies_in_the_middle_costs_no_run(jobs: Jobs, undisturbed: Path) -> None:
    job = jobs.held("struck", "--nodes=2-2")
    assert jobs.cluster.nodes(job) == "n[1-2]"
    jobs.cluster.kill_node("n2")
    jobs.cluster.signal_tasks(job, signal.SIGCONT)
    jobs.end(job, "struck")
    assert jobs.cluster.restarts(job) == 1
    assert jobs.cluster.nodes(job) in ("n[1,3]", "n[1,4]", "n[3-4]")
    assert "resuming at step" in jobs.said("struck")
    same(jobs.at / "struck", undisturbed)
