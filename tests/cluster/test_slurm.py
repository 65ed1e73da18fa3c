"""The scripts of slurm/, submitted to a real SLURM of four nodes; they train a tiny network on the CPU.

``make test`` runs the tests without the marker ``slow``; each job costs a few cold starts of the program.
"""

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
from helpers import ROOT, TINY, command, losses
from private_slurm import Cluster, missing_programs, wait_for
from wandb_files import history

from brain_dist.scalability import results

pytestmark = pytest.mark.timeout(900)  # jobs wait for other jobs and for SLURM's intervals
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
TRAINING = [
    *(*TINY, "--run.device", "cpu", "--model.pretrained", "false", "--model.drop_path", "0"),
    *("--train.precision", "fp32", "--train.global_batch", "24", "--train.eval_every", "0", "--optim.lr", "1e-3"),
]
STEPS = 40
LONG = [*TRAINING, "--train.micro_batch", "4", "--train.epochs", "8", "--train.save_every", "15"]


class Jobs:
    """Submits the scripts. Each job has a name, which is also that of its log and its run."""

    def __init__(self, cluster: Cluster, shards: Path, folder: Path) -> None:
        self.cluster, self.shards, self.folder = cluster, shards, folder

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def output(self, name: str) -> str:
        return self.log(name).read_text()

    def submit(self, name: str, script: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
        """Submit a script with SLURM's options and its own arguments; return the job's number."""
        return self.cluster.sbatch(*options, f"--output={self.log(name)}", script, *arguments)

    def train(self, name: str, *options: str, settings: list[str] | None = None) -> str:
        """Submit train_convnext.sh, with one GPU on each of two nodes unless ``options`` override that."""
        paths = ["--data.shards", str(self.shards), "--run.dir", str(self.folder), "--run.name", name]
        options = ("--nodes=2", "--gpus-per-node=1", *options)
        return self.submit(name, "slurm/train_convnext.sh", *(settings or LONG), *paths, options=options)

    def train_and_pause(self, name: str, *options: str, settings: list[str] | None = None, step: int = 20) -> str:
        """Submit a training and stop its tasks with SIGSTOP in the middle, at ``step`` or soon after."""
        job = self.train(name, *options, settings=settings)
        self.cluster.stop_tasks_at(step, self.folder / name, job, log=self.log(name))
        assert len(losses(self.folder / name)) < STEPS, "paused too late"
        return job

    def wait(self, job: str, name: str, state: str = "COMPLETED") -> None:
        """Wait for the end of a job."""
        self.cluster.wait(job, log=self.log(name), state=state)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four idle nodes with four stand-in GPUs each."""
    if missing := missing_programs():
        pytest.skip(f"SLURM is not installed ({missing} missing): apt-get install slurm-wlm munge")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def jobs(cluster: Cluster, phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs(cluster, phantom_shards, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def limited(jobs: Jobs) -> str:
    """A job that reaches its time limit. SLURM checks limits every 30 s only; the next fixtures use that time."""
    job = jobs.train_and_pause("limited", "--nodelist=n3,n4")
    minutes = jobs.cluster.minutes(job) + 5  # the script's --signal=B:USR1@300 is due from now on
    jobs.cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")

    def extend_limit() -> None:  # after the warning, because the next attempt needs time too
        wait_for(lambda: "SLURM asks to stop" in jobs.output("limited"), 240, "the warning before the time limit")
        jobs.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")

    Thread(target=extend_limit, daemon=True).start()
    return job


@pytest.fixture(scope="module")
def array(jobs: Jobs) -> str:
    """Two tasks of the array of baselines."""
    settings = ["--model.name", "test_efficientnet", "--train.micro_batch", "12", "--train.epochs", "1"]
    paths = ["--data.shards", str(jobs.shards), "--run.dir", str(jobs.folder / "array")]
    options = ("--array=2,4", "--gpus-per-node=1")
    return jobs.submit("array", "slurm/train_baselines.sh", *TRAINING, *settings, *paths, options=options)


@pytest.fixture(scope="module")
def chain(jobs: Jobs, phantom_shards: Path) -> dict[str, str]:
    """Build, then training on four nodes, then evaluation; each job waits for the previous one."""
    images, shards = phantom_shards.parent / "images", jobs.folder / "chained"
    build_arguments = ["--source", str(images), "--out", str(shards), "--workers", "2"]
    build = jobs.submit("build", "slurm/build_shards.sh", *build_arguments)
    settings = [*TRAINING, "--train.micro_batch", "2", "--train.epochs", "1"]
    paths = ["--data.shards", str(shards), "--run.dir", str(jobs.folder), "--run.name", "chain"]
    options = (f"--dependency=afterok:{build}", "--nodes=4", "--gpus-per-node=1")
    train = jobs.submit("chain", "slurm/train_convnext.sh", *settings, *paths, options=options)
    evaluate = jobs.submit(
        "evaluate",
        "slurm/evaluate.sh",
        *(str(jobs.folder / "chain"), "--device", "cpu"),
        options=(f"--dependency=afterok:{train}",),
    )
    assert jobs.cluster.state(evaluate) == "PENDING"
    table = jobs.folder / "chain.csv"
    predict = jobs.submit(
        "predict",
        "slurm/predict.sh",
        *(str(jobs.folder / "chain"), str(images), "--out", str(table), "--resume", "--batch", "8", "--device", "cpu"),
        options=(f"--dependency=afterok:{train}", "--nodes=2", "--gpus-per-node=2"),
    )
    return {"build": build, "chain": train, "evaluate": evaluate, "predict": predict}


@pytest.fixture(scope="module")
def undisturbed(jobs: Jobs) -> Path:
    """A run without interruptions."""
    jobs.wait(jobs.train("undisturbed"), "undisturbed")
    assert len(losses(jobs.folder / "undisturbed")) == STEPS
    return jobs.folder / "undisturbed"


def assert_same_training(run: Path, undisturbed: Path) -> None:
    """Compare all losses, and the bytes of the final weights and of their average."""
    assert losses(run) == losses(undisturbed)
    for name in ("model.safetensors", "ema.safetensors"):
        actual, expected = (folder / "checkpoints" / f"{STEPS:08d}" / name for folder in (run, undisturbed))
        assert actual.read_bytes() == expected.read_bytes()


def test_sbatch_accepts_every_script(cluster: Cluster) -> None:
    assert len(SCRIPTS) >= 4
    for script in SCRIPTS:
        cluster.run("sbatch", "--test-only", str(script))


def test_wrong_start_of_a_script_is_reported(cluster: Cluster, tmp_path: Path) -> None:
    without_sbatch = command(["bash", str(SCRIPTS[0])], expect=2)
    assert "must be submitted: sbatch" in without_sbatch.err
    other_folder = cluster.sbatch(f"--chdir={tmp_path}", f"--output={tmp_path}/log", str(SCRIPTS[0]))
    cluster.wait(other_folder, log=tmp_path / "log", state="FAILED")
    assert "launch/slurm.sh" in (tmp_path / "log").read_text()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    scripts = [*SCRIPTS, *(ROOT / "launch").glob("*.sh"), ROOT / ".ci" / "run"]
    command(["shellcheck", "--external-sources", *map(str, scripts)])


@pytest.mark.slow
def test_job_at_its_time_limit_saves_and_resumes(
    jobs: Jobs, limited: str, array: str, chain: dict[str, str], undisturbed: Path
) -> None:
    # array and chain are not needed, but run while this job waits for its limit
    wait_for(lambda: jobs.cluster.time_limit(limited) == "01:00:00", 240, "the warning before the time limit")
    assert "SLURM asks to stop" in jobs.output("limited")
    jobs.cluster.signal_tasks(limited, signal.SIGCONT)
    jobs.wait(limited, "limited")
    assert jobs.cluster.restarts(limited) == 1
    assert "stopped after a clean save; back in the queue" in jobs.output("limited")
    assert_same_training(jobs.folder / "limited", undisturbed)


@pytest.mark.slow
def test_array_of_baselines(jobs: Jobs, array: str) -> None:
    for task in (2, 4):
        jobs.cluster.wait(f"{array}_{task}", log=jobs.log("array"))
    configs = [
        yaml.safe_load((jobs.folder / "array" / name / "config.yaml").read_text())
        for name in ("resnet50-2", "efficientnet_b0-1")
    ]
    assert [config["run"]["seed"] for config in configs] == [2, 1]
    assert [config["track"]["group"] for config in configs] == ["resnet50", "efficientnet_b0"]


@pytest.mark.slow
def test_chain_of_build_training_on_four_nodes_and_evaluation(jobs: Jobs, chain: dict[str, str]) -> None:
    for name, job in chain.items():
        jobs.wait(job, name)
    run = jobs.folder / "chain"
    assert json.loads((run / "environment.json").read_text())["world_size"] == 4
    metrics = json.loads((run / "predictions" / "test.json").read_text())
    assert metrics["n"] == 30
    lines = (jobs.folder / "chain.csv").read_text().splitlines()
    images = [path for path in (jobs.shards.parent / "images").rglob("*") if path.suffix in (".jpg", ".png")]
    assert sorted(line.split(",")[0] for line in lines[1:]) == sorted(map(str, images))


@pytest.mark.slow
def test_an_array_of_parts_builds_the_same_shards_as_one_job(jobs: Jobs, phantom_shards: Path) -> None:
    out = jobs.folder / "from-parts"
    arguments = ["--source", str(phantom_shards.parent / "images"), "--out", str(out), "--workers", "1", "--parts", "3"]
    parts = jobs.submit("parts", "slurm/build_shards.sh", *arguments, options=("--array=0-2",))
    options = (f"--dependency=afterok:{parts}", "--kill-on-invalid-dep=yes")
    joined = jobs.submit("from-parts", "slurm/build_shards.sh", *arguments, options=options)
    jobs.wait(joined, "from-parts")
    assert [f"part {number} of 3 is complete" in jobs.output("parts") for number in range(3)] == [True] * 3
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(path.name for path in phantom_shards.iterdir())
    assert all((out / name).read_bytes() == (phantom_shards / name).read_bytes() for name in names)


def test_training_on_two_nodes(jobs: Jobs, undisturbed: Path) -> None:
    environment = json.loads((undisturbed / "environment.json").read_text())
    assert (environment["world_size"], environment["launcher"]) == (2, "srun")
    assert losses(undisturbed)[-1] < losses(undisturbed)[0]
    assert "2 × cpu (srun)" in jobs.output("undisturbed")


@pytest.mark.slow
def test_container_is_set_by_one_variable(jobs: Jobs, phantom_shards: Path, tmp_path: Path) -> None:
    # Debian has no container runtime: this replacement of apptainer prints its arguments and runs the command
    (tmp_path / "apptainer").write_text(
        '#!/bin/bash\necho "apptainer $*"; while [[ $1 != *.sif ]]; do shift; done\n"${@:2}"'
    )
    (tmp_path / "apptainer").chmod(0o755)
    variables = f"PATH={tmp_path}:{jobs.cluster.env['PATH']},BRAIN_DIST_CONTAINER=apptainer:brain.sif"
    images, out = phantom_shards.parent / "images", jobs.folder / "container"
    arguments = ["--source", str(images), "--out", str(out), "--workers", "2"]
    job = jobs.submit("container", "slurm/build_shards.sh", *arguments, options=(f"--export=ALL,{variables}",))
    jobs.wait(job, "container")
    prefix = f"apptainer exec --nv --bind {ROOT} --pwd {ROOT} brain.sif"
    assert f"{prefix} {sys.executable} -m brain_dist.shard build" in jobs.output("container")
    assert (out / "manifest.json").read_bytes() == (phantom_shards / "manifest.json").read_bytes()


def test_unknown_container_runtime_is_reported(jobs: Jobs) -> None:
    options = ("--export=ALL,BRAIN_DIST_CONTAINER=docker:brain",)
    job = jobs.submit("docker", "slurm/build_shards.sh", options=options)
    jobs.wait(job, "docker", "FAILED")
    assert "must be apptainer:IMAGE or pyxis:IMAGE" in jobs.output("docker")


def scaling_arguments(out: Path, shards: Path) -> list[str]:
    """Arguments of a scaling experiment with one model, one step and one measurement per case."""
    cases = ["--mode", "strong", "--steps", "1", "--repeats", "1", "--train.micro_batch", "24"]
    return ["--out", str(out), *TRAINING, *cases, "--data.shards", str(shards)]


@pytest.mark.slow
def test_scaling_experiment_is_one_job_with_a_step_per_case(jobs: Jobs) -> None:
    out = jobs.folder / "scaling"
    arguments = ["--nodes", "1,2", *scaling_arguments(out, jobs.shards)]
    job = jobs.submit("scaling", "slurm/scaling.sh", *arguments, options=("--nodes=2", "--gpus-per-node=1"))
    jobs.wait(job, "scaling")
    rows = results.read(out / "scaling.parquet")
    batches = [(row["nodes"], row["ranks"], row["global_batch"], row["micro_batch"], row["micros"]) for row in rows]
    assert batches == [(1, 1, 24, 24, 1), (2, 2, 24, 12, 1)]
    assert [row["bytes_sent"] > 0 for row in rows] == [False, True]
    assert "| 2 | 2 | 24 = 12 × 1 × 2 |" in (out / "scaling.md").read_text()
    # step 0 ran on the first node only, whose address all ranks have
    first, second = jobs.cluster.nodes(job).replace("n[", "").rstrip("]").replace("-", ",").split(",")
    node_logs = [(jobs.cluster.folder / f"slurmd-n{node}.log").read_text() for node in (first, second)]
    steps_by_node = [[f"StepId={job}.{step}" in log for step in (0, 1)] for log in node_logs]
    assert steps_by_node == [[True, True], [False, True]]


@pytest.mark.slow
def test_scaling_on_a_login_node_submits_a_job_per_case_and_cancels_it_when_interrupted(jobs: Jobs) -> None:
    out = jobs.folder / "login"
    arguments = ["--nodes", "1", "--per-node", "1", *scaling_arguments(out, jobs.shards)]
    experiment = [sys.executable, "-m", "brain_dist.scaling", "run", *arguments]

    def submitted() -> list[str]:
        queue = jobs.cluster.run("squeue", "--noheader", "--states=all", "--name=scaling-login", "--format=%i")
        return queue.split()

    process = subprocess.Popen(experiment, cwd=ROOT, env=jobs.cluster.env, stderr=subprocess.PIPE, text=True)
    wait_for(submitted, 120, "a job of the experiment")
    process.send_signal(signal.SIGTERM)
    assert "interrupted: 0 of 1 cases are kept" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    (job,) = submitted()
    wait_for(lambda: jobs.cluster.state(job) == "CANCELLED", 60, f"the end of job {job}")

    result = command(experiment, **jobs.cluster.env)
    assert "strong-test_convnext-zero2-1x1-r0 done" in result.err
    (row,) = results.read(out / "scaling.parquet")
    assert row["images_per_s"] > 0
    assert len(submitted()) == 2


def test_preempted_job_saves_and_resumes(jobs: Jobs, undisturbed: Path) -> None:
    # SLURM's SIGTERM reaches every process of the step, W&B's own process too
    settings = [*LONG, "--track.wandb", "offline"]
    job = jobs.train_and_pause("preempted", "--nodelist=n1,n2", settings=settings)
    urgent = jobs.cluster.sbatch(
        *("--partition=urgent", "--nodelist=n1,n2", "--nodes=2", "--exclusive"),
        *(f"--output={jobs.log('urgent')}", "--wrap", "echo higher priority"),
    )
    jobs.wait(urgent, "urgent")
    jobs.wait(job, "preempted")
    assert jobs.cluster.restarts(job) == 1
    output = jobs.output("preempted")
    assert "stopped after a clean save; back in the queue" in output
    assert "attempt 2" in output
    assert "Traceback" not in output
    assert resumed_step(output) > 20, "resumed from the periodic checkpoint of step 15"
    assert_wandb_has_every_step(jobs.folder / "preempted")
    assert_same_training(jobs.folder / "preempted", undisturbed)


def resumed_step(output: str) -> int:
    """The step from which a run resumed."""
    match = re.search(r"resuming at step (\d+)", output)
    assert match
    return int(match[1])


def assert_wandb_has_every_step(run: Path) -> None:
    """Every step is in W&B's files. The last steps before W&B's process ended can be there twice."""
    folders = sorted((run / "wandb").glob("offline-run-*"))
    assert all((folder / "FINISHED").exists() for folder in folders)
    steps = [[row["step"] for row in history(folder) if "train/loss" in row] for folder in folders]
    assert all(part == sorted(set(part)) for part in steps)
    assert {step for part in steps for step in part} == set(range(STEPS))


@pytest.mark.slow
def test_job_requeued_by_an_operator_resumes_from_the_newest_checkpoint(jobs: Jobs, undisturbed: Path) -> None:
    job = jobs.train_and_pause("requeued", "--nodelist=n1,n2")
    jobs.cluster.run("scontrol", "requeue", job)
    jobs.wait(job, "requeued")
    assert jobs.cluster.restarts(job) == 1
    assert "resuming at step" in jobs.output("requeued")
    assert_same_training(jobs.folder / "requeued", undisturbed)


@pytest.mark.slow
def test_user_error_is_not_requeued(jobs: Jobs) -> None:
    job = jobs.train("wrong", settings=[*LONG, "--train.global_batch", "21"])
    jobs.wait(job, "wrong", "FAILED")
    assert "train.global_batch=21" in jobs.output("wrong")
    assert_not_requeued(jobs, job, "wrong")


@pytest.mark.slow
def test_cancelled_job_is_not_requeued(jobs: Jobs) -> None:
    job = jobs.train_and_pause("cancelled")
    jobs.cluster.run("scancel", job)
    jobs.wait(job, "cancelled", "CANCELLED")
    assert_not_requeued(jobs, job, "cancelled")


def assert_not_requeued(jobs: Jobs, job: str, name: str) -> None:
    assert "back in the queue" not in jobs.output(name), jobs.output(name)
    assert jobs.cluster.restarts(job) == 0


@pytest.mark.slow
def test_job_on_a_node_that_dies_is_requeued_and_resumes(jobs: Jobs, undisturbed: Path) -> None:
    job = jobs.train_and_pause("node-lost", "--nodes=2-2")
    assert jobs.cluster.nodes(job) == "n[1-2]"
    jobs.cluster.kill_node("n2")
    jobs.cluster.signal_tasks(job, signal.SIGCONT)
    jobs.wait(job, "node-lost")
    assert jobs.cluster.restarts(job) == 1
    assert jobs.cluster.nodes(job) in ("n[1,3]", "n[1,4]", "n[3-4]")
    assert "resuming at step" in jobs.output("node-lost")
    assert_same_training(jobs.folder / "node-lost", undisturbed)


@pytest.fixture(scope="module")
def benchmark(jobs: Jobs) -> tuple[Path, list[str]]:
    """The folder of a benchmark, and the command that submits it from a login node."""
    out = jobs.folder / "benchmark"
    settings = [*TRAINING[2:], "--train.micro_batch", "12", "--train.epochs", "1", "--train.best", "f1_macro"]
    arguments = ["--models", "test_convnext,test_efficientnet", "--seeds", "0,1", "--data.shards", str(jobs.shards)]
    return out, [sys.executable, "-m", "brain_dist.benchmark", "run", str(out), *arguments, *settings, "--slurm"]


@pytest.mark.slow
def test_benchmark_is_one_job_array_that_is_submitted_once(jobs: Jobs, benchmark: tuple[Path, list[str]]) -> None:
    out, submit = benchmark
    variables = {**jobs.cluster.env, "SBATCH_GPUS_PER_NODE": "1"}
    printed = command(submit, **variables).out
    match = re.search(r"job (\d+): 4 cells, one task each; then `brain-dist benchmark table", printed)
    assert match, printed
    job = match[1]
    assert f"job {job} of this benchmark still has" in command(submit, expect=2, **variables).err
    for task in range(4):
        jobs.cluster.wait(f"{job}_{task}", log=out / "cells" / f"benchmark-{job}_{task}.log")
    assert "all cells are finished" in command(submit, **variables).out

    table = command([sys.executable, "-m", "brain_dist.benchmark", "table", str(out)], **jobs.cluster.env)
    assert "missing" not in table.out
    for model in ("test_convnext", "test_efficientnet"):
        (measured,) = (out / "costs").glob(f"{model}-*.json")
        assert json.loads(measured.read_text())["gmacs"] > 0
    environment = [json.loads(path.read_text()) for path in sorted(out.glob("cells/*/environment.json"))]
    assert [(each["launcher"], each["world_size"]) for each in environment] == [("srun", 1)] * 4


@pytest.mark.slow
def test_a_cross_benchmark_is_one_job_array_and_gives_its_matrix(jobs: Jobs, tmp_path: Path) -> None:
    images, other, out = tmp_path / "elsewhere", tmp_path / "other", jobs.folder / "cross"
    size = ["--patients", "16", "--slices", "2", "--size", "96", "--seed", "1"]
    command([sys.executable, "-m", "brain_dist.shard", "phantom", "--out", str(images), *size])
    patients = {"file": "patients.csv", "id": "id", "patient": "patient"}
    folders = {name: [name] for name in ("glioma", "meningioma", "notumor", "pituitary")}
    part = {"dataset": "elsewhere", "folders": folders, "patients": patients}
    recipe = {"name": "elsewhere", "classes": list(folders), "parts": [part]}
    (tmp_path / "elsewhere.yaml").write_text(json.dumps(recipe))
    build = ["--recipe", str(tmp_path / "elsewhere.yaml"), "--source", str(images), "--out", str(other)]
    command([sys.executable, "-m", "brain_dist.shard", "build", *build])
    settings = [*TRAINING[2:], "--train.micro_batch", "12", "--train.epochs", "1", "--train.best", "f1_macro"]
    arguments = ["--sources", f"{jobs.shards},{other}", "--models", "test_convnext", "--seeds", "0", *settings]
    here = [sys.executable, "-m", "brain_dist.benchmark", "cross", str(out), *arguments]
    variables = {**jobs.cluster.env, "SBATCH_GPUS_PER_NODE": "1"}
    match = re.search(r"job (\d+): 2 cells, one task each", command([*here, "--slurm"], **variables).out)
    assert match
    planned = json.loads((out / "cross_plan.json").read_text())["pairs"]
    assert [pair["kind"] for pair in planned] == ["internal", "external"] * 2
    for task in range(2):
        jobs.cluster.wait(f"{match[1]}_{task}", log=out / "cells" / f"benchmark-{match[1]}_{task}.log")

    printed = command([sys.executable, "-m", "brain_dist.benchmark", "table", str(out)], **jobs.cluster.env).out
    text = (out / "cross.md").read_text()
    assert text in printed
    rows = json.loads((out / "cross.json").read_text())["rows"]
    assert [row.get("refused") for row in rows] == [None] * 4
    (out / "cross.md").unlink()
    assert "all cells are finished" in command([*here, "--slurm"], **variables).out
    assert (out / "cross.md").read_text() == text
    assert "2 cells, 2 of them finished" in command(here, **jobs.cluster.env).err  # goes on without SLURM


@pytest.mark.slow
def test_cells_of_a_benchmark_that_are_lost_are_submitted_again(jobs: Jobs, benchmark: tuple[Path, list[str]]) -> None:
    out, submit = benchmark
    assert (out / "table.parquet").is_file(), "this test needs the finished benchmark of the test before"
    before = (out / "table.parquet").read_bytes()
    key = json.loads((out / "benchmark.json").read_text())["cells"][2]["cell"]
    shutil.rmtree(out / "cells" / key)
    variables = {**jobs.cluster.env, "SBATCH_GPUS_PER_NODE": "1"}
    match = re.search(r"job (\d+): 1 cells", command(submit, **variables).out)
    assert match
    jobs.cluster.wait(f"{match[1]}_0", log=out / "cells" / f"benchmark-{match[1]}_0.log")
    command([sys.executable, "-m", "brain_dist.benchmark", "table", str(out)], **jobs.cluster.env)
    assert (out / "table.parquet").read_bytes() == before
