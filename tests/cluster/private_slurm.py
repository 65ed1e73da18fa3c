"""A real SLURM of four nodes on this machine: munged, slurmctld and four slurmd with private files and ports."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from guard import cluster_processes
from helpers import ROOT, environment, free_ports, read_metrics

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
NODES = ("n1", "n2", "n3", "n4")
# Character devices stand in for GPUs, so that SLURM accepts --gpus-per-node; torch finds no GPU behind them
DEVICES = "/dev/null,/dev/zero,/dev/full,/dev/random"
CONF = """\
ClusterName=brain
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
# a requeued job starts when its old credential has expired: after at least 5 s, by default after 120 s
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=100000
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdTimeout=10
KillWait=5
CompleteWait=0
MinJobAge=3600
# random, so that another such cluster on this machine has other job numbers and so other ports
FirstJobId={first_job}
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=DEFAULT CPUs=32 Boards=1 SocketsPerBoard=1 CoresPerSocket=32 \
ThreadsPerCore=1 RealMemory=262144 Gres=gpu:4
{nodes}
PartitionName=work Nodes=n[1-4] Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE
PartitionName=urgent Nodes=n[1-4] PriorityTier=9 PreemptMode=OFF MaxTime=INFINITE
"""


def missing_programs() -> str:
    """Names of SLURM's programs that are not installed, separated by commas."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return ", ".join(name for name in PROGRAMS if shutil.which(name, path=path) is None)


class Cluster:
    """The daemons of a private cluster. A guard process kills them when this process ends.

    Args:
        folder: Folder for the configuration, the logs and the state.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.conf = folder, folder / "slurm.conf"
        self.env = environment(SLURM_CONF=str(self.conf), PYTHON=sys.executable)
        self.env["PATH"] += ":/usr/sbin:/sbin"
        for name in [n for n in self.env if n.startswith(("SLURM_", "SBATCH_")) and n != "SLURM_CONF"]:
            del self.env[name]
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Write the configuration, start the daemons, and wait until all nodes are idle."""
        self._write_configuration()
        guard = [sys.executable, str(Path(__file__).parent / "guard.py"), str(self.conf)]
        self.guard = subprocess.Popen(guard, stdin=subprocess.PIPE)
        files = {name: self.folder / f"munge.{name}" for name in ("key", "socket", "pid", "log", "seed")}
        self._start_daemon(
            *("munged", "--foreground", "--force", f"--key-file={files['key']}", f"--socket={files['socket']}"),
            *(f"--pid-file={files['pid']}", f"--log-file={files['log']}", f"--seed-file={files['seed']}"),
        )
        wait_for(files["socket"].exists, 20, "munged")
        self._start_daemon("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        wait_for(self._all_idle, 60, "four idle nodes")

    def _write_configuration(self) -> None:
        self.folder.chmod(0o755)
        host = socket.gethostname().split(".")[0]
        ports = free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
            for node, port in zip(NODES, ports[1:], strict=True)
        )
        first_job = random.SystemRandom().randrange(1, 12000)
        self.conf.write_text(CONF.format(folder=self.folder, host=host, ports=ports, nodes=nodes, first_job=first_job))
        (self.folder / "gres.conf").write_text(f"NodeName=n[1-4] Name=gpu File={DEVICES}\n")
        (self.folder / "state").mkdir()
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o600)

    def _all_idle(self) -> bool:
        ended = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
        assert not ended, f"{', '.join(ended)} ended: {(self.folder / 'daemons.log').read_text()}"
        return self.run("sinfo", "-h", "-t", "idle", "-o", "%D", check=False).strip() == str(len(NODES))

    def start_node(self, node: str) -> None:
        """Start the slurmd of one node."""
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._start_daemon("slurmd", "-D", "-N", node, name=node)

    def kill_node(self, node: str) -> None:
        """Kill slurmd, its step managers and all their processes at once, as a power cut does."""
        for process in {self.daemons[node].pid, *self._processes_of_node(node)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.daemons.pop(node).wait()

    def stop(self) -> None:
        """Let the guard kill everything."""
        assert self.guard.stdin is not None
        self.guard.stdin.close()
        self.guard.wait(timeout=30)
        for daemon in self.daemons.values():
            daemon.wait(timeout=10)

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of SLURM's commands and return its output."""
        process = subprocess.run(
            command, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=60, check=False
        )
        assert process.returncode == 0 or not check, f"{' '.join(command)}\n{process.stdout}\n{process.stderr}"
        return process.stdout

    def sbatch(self, *arguments: str) -> str:
        """Submit a job and return its number."""
        return self.run("sbatch", "--parsable", *arguments).strip()

    def state(self, job: str) -> str:
        """State of a job, such as RUNNING or COMPLETED."""
        return self._field(job, "JobState")

    def _field(self, job: str, name: str) -> str:
        match = re.search(rf" {name}=(\S+)", self.run("scontrol", "show", "job", "--oneliner", job))
        assert match, f"job {job} has no {name}"
        return match[1]

    def nodes(self, job: str) -> str:
        """Nodes of a job, such as n[1-2]."""
        return self._field(job, "NodeList")

    def restarts(self, job: str) -> int:
        """How often SLURM has restarted a job."""
        return int(self._field(job, "Restarts"))

    def minutes(self, job: str) -> int:
        """Whole minutes that a job has run."""
        return int(self._field(job, "RunTime").split(":")[1])

    def time_limit(self, job: str) -> str:
        """Time limit of a job, such as 01:00:00."""
        return self._field(job, "TimeLimit")

    def wait(self, job: str, *, log: Path, state: str = "COMPLETED", timeout: float = 420) -> None:
        """Wait for the end of a job; fail with its log unless it ends in ``state``."""
        deadline = time.monotonic() + timeout
        while (current := self.state(job)) not in ENDED and time.monotonic() < deadline:
            time.sleep(0.2)
        assert current == state, f"job {job} is {current}\n{_text(log)}\n{self.run('scontrol', 'show', 'job', job)}"

    def stop_tasks_at(self, step: int, run: Path, job: str, *, log: Path) -> None:
        """Send SIGSTOP to the tasks of a job once its run has logged ``step``."""
        state_checked = time.monotonic()

        def reached() -> bool:
            nonlocal state_checked
            if any(row["kind"] == "train" and row["step"] >= step for row in read_metrics(run / "metrics.jsonl")):
                return True
            if time.monotonic() - state_checked > 2:  # rarely, because the run continues while SLURM answers
                state, state_checked = self.state(job), time.monotonic()
                assert state not in ENDED, f"job {job} is {state}\n{_text(log)}"
            return False

        wait_for(reached, 300, f"step {step} of {run.name}")
        self.signal_tasks(job, signal.SIGSTOP)

    def signal_tasks(self, job: str, number: signal.Signals) -> None:
        """Send a signal to the training processes of a job, without SLURM."""
        tasks = [process for process in cluster_processes(str(self.conf)) if self._is_task(process, job)]
        assert tasks, f"job {job} has no tasks"
        for process in tasks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def _is_task(self, process: int, job: str) -> bool:
        variables = _environment(process)
        # the batch shell and srun have no SLURM_STEP_ID
        return (
            variables.get("SLURM_JOB_ID") == job
            and "SLURM_STEP_ID" in variables
            and "brain_dist." in _command_line(process)
        )

    def _processes_of_node(self, node: str) -> list[int]:
        """Step managers of a node and their descendants."""
        log = f"{self.folder}/slurmd-{node}.log"
        parents = {process: _parent(process) for process in cluster_processes(str(self.conf))}
        processes = {p for p in parents if "slurmstepd" in _command_line(p) and log in _open_files(p)}
        while children := {p for p, parent in parents.items() if parent in processes} - processes:
            processes |= children
        return sorted(processes)

    def _start_daemon(self, *command: str, name: str | None = None) -> None:
        with (self.folder / "daemons.log").open("ab") as log:
            self.daemons[name or command[0]] = subprocess.Popen(
                command, env=self.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )


def wait_for(condition: Callable[[], bool], seconds: float, description: str) -> None:
    """Wait until the condition holds; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {description}"
        time.sleep(0.05)


def _text(log: Path) -> str:
    return log.read_text() if log.exists() else "no log"


def _environment(process: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(item.split("=", 1) for item in text.split("\0") if "=" in item)


def _command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def _parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def _open_files(process: int) -> str:
    try:
        return " ".join(str(link.readlink()) for link in Path(f"/proc/{process}/fd").iterdir())
    except OSError:
        return ""
