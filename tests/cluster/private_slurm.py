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

from conftest import ROOT, environment, free_ports, read_metrics
from guard import members

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
NODES = ("n1", "n2", "n3", "n4")
# Character devices stand in for GPUs, so that --gpus-per-node is accepted as it is; torch finds no GPU behind them
DEVICES = "/dev/null,/dev/zero,/dev/full,/dev/random"
CONF = """\
ClusterName=brain
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmctldPidFile={at}/slurmctld.pid
SlurmctldLogFile={at}/slurmctld.log
StateSaveLocation={at}/state
SlurmdPidFile={at}/slurmd-%n.pid
SlurmdLogFile={at}/slurmd-%n.log
SlurmdSpoolDir={at}/spool-%n
# a requeued job waits for its old credential to expire before it starts again; 5 s is the least, 120 the default
AuthInfo=socket={at}/munge.socket,cred_expire=5
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
# another such cluster on this machine shall not count its jobs, and so their ports, alike
FirstJobId={first}
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=DEFAULT CPUs=32 Boards=1 SocketsPerBoard=1 CoresPerSocket=32 \
ThreadsPerCore=1 RealMemory=262144 Gres=gpu:4
{nodes}
PartitionName=work Nodes=n[1-4] Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE
PartitionName=urgent Nodes=n[1-4] PriorityTier=9 PreemptMode=OFF MaxTime=INFINITE
"""


def missing() -> str:
    """Names of SLURM's programs that are not installed."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return ", ".join(name for name in PROGRAMS if shutil.which(name, path=path) is None)


class Cluster:
    """Started by :meth:`start`; whatever becomes of this process, the guard ends all of it."""

    def __init__(self, at: Path) -> None:
        self.at, self.conf = at, at / "slurm.conf"
        self.env = environment(SLURM_CONF=str(self.conf), PYTHON=sys.executable)
        self.env["PATH"] += ":/usr/sbin:/sbin"
        for name in [n for n in self.env if n.startswith(("SLURM_", "SBATCH_")) and n != "SLURM_CONF"]:
            del self.env[name]
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Write the configuration, start the daemons, wait until four nodes are idle."""
        at, host = self.at, socket.gethostname().split(".")[0]
        at.chmod(0o755)
        ports = free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={n} NodeHostname={host} NodeAddr=127.0.0.1 Port={p}"
            for n, p in zip(NODES, ports[1:], strict=True)
        )
        self.conf.write_text(
            CONF.format(at=at, host=host, ports=ports, nodes=nodes, first=random.SystemRandom().randrange(1, 12000))
        )
        (at / "gres.conf").write_text(f"NodeName=n[1-4] Name=gpu File={DEVICES}\n")
        (at / "state").mkdir()
        (at / "munge.key").write_bytes(os.urandom(128))
        (at / "munge.key").chmod(0o600)
        words = [sys.executable, str(Path(__file__).parent / "guard.py"), str(self.conf)]
        self.guard = subprocess.Popen(words, stdin=subprocess.PIPE)
        files = {name: at / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
        self._daemon(
            *("munged", "--foreground", "--force", f"--key-file={at}/munge.key", f"--socket={files['socket']}"),
            *(f"--pid-file={files['pid']}", f"--log-file={files['log']}", f"--seed-file={files['seed']}"),
        )
        wait_for(files["socket"].exists, 20, "munged")
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        wait_for(self._idle, 60, "four idle nodes")

    def _idle(self) -> bool:
        ended = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
        assert not ended, f"{', '.join(ended)} ended: {(self.at / 'daemons.log').read_text()}"
        return self.run("sinfo", "-h", "-t", "idle", "-o", "%D", check=False).strip() == str(len(NODES))

    def start_node(self, node: str) -> None:
        """slurmd of one node."""
        (self.at / f"spool-{node}").mkdir(exist_ok=True)
        self._daemon("slurmd", "-D", "-N", node, name=node)

    def kill_node(self, node: str) -> None:
        """What a power cut does: slurmd, its step managers and all their processes are gone at once."""
        doomed = {self.daemons[node].pid, *self._of_node(node)}
        for process in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.daemons.pop(node).wait()

    def stop(self) -> None:
        """End everything, by the same way as when this process dies."""
        assert self.guard.stdin is not None
        self.guard.stdin.close()
        self.guard.wait(timeout=30)
        for daemon in self.daemons.values():
            daemon.wait(timeout=10)

    def run(self, *words: str, check: bool = True) -> str:
        """Output of one of SLURM's commands."""
        done = subprocess.run(words, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 or not check, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def sbatch(self, *words: str) -> str:
        """Submit; the job's number."""
        return self.run("sbatch", "--parsable", *words).strip()

    def state(self, job: str) -> str:
        """Such as RUNNING, or COMPLETED."""
        return self._shown(job, "JobState")

    def _shown(self, job: str, name: str) -> str:
        found = re.search(rf" {name}=(\S+)", self.run("scontrol", "show", "job", "--oneliner", job))
        assert found, f"job {job} has no {name}"
        return found[1]

    def nodes(self, job: str) -> str:
        """Such as n[1-2]."""
        return self._shown(job, "NodeList")

    def restarts(self, job: str) -> int:
        """How often SLURM started the job again."""
        return int(self._shown(job, "Restarts"))

    def minutes(self, job: str) -> int:
        """Whole minutes that the job has run."""
        return int(self._shown(job, "RunTime").split(":")[1])

    def time_limit(self, job: str) -> str:
        """Such as 01:00:00."""
        return self._shown(job, "TimeLimit")

    def wait(self, job: str, *, log: Path, state: str = "COMPLETED", timeout: float = 420) -> None:
        """Wait for the job's end and compare its state; fails with its log."""
        limit = time.monotonic() + timeout
        while (now := self.state(job)) not in ENDED and time.monotonic() < limit:
            time.sleep(0.2)
        text = log.read_text() if log.exists() else "no log"
        assert now == state, f"job {job} is {now}\n{text}\n{self.run('scontrol', 'show', 'job', job)}"

    def reach(self, run: Path, job: str, step: int, *, log: Path) -> None:
        """Stop the job's tasks (SIGSTOP) in the middle: once they have told of ``step``."""

        asked = time.monotonic()

        def reached() -> bool:
            nonlocal asked
            if any(row["kind"] == "train" and row["step"] >= step for row in read_metrics(run / "metrics.jsonl")):
                return True
            if time.monotonic() - asked > 2:  # seldom: the steps go on while SLURM answers
                now, asked = self.state(job), time.monotonic()
                assert now not in ENDED, f"job {job} is {now}\n{log.read_text() if log.exists() else 'no log'}"
            return False

        wait_for(reached, 300, f"step {step} of {run.name}")
        self.signal_tasks(job, signal.SIGSTOP)

    def signal_tasks(self, job: str, number: signal.Signals) -> None:
        """Send a signal to the job's training processes, past SLURM."""
        tasks = [p for p in members(str(self.conf)) if self._is_task(p, job)]
        assert tasks, f"job {job} has no tasks"
        for process in tasks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def _is_task(self, process: int, job: str) -> bool:
        variables = _environ(process)
        # the batch shell and srun are in no step of their own
        return (
            variables.get("SLURM_JOB_ID") == job and "SLURM_STEP_ID" in variables and "brain_dist." in _words(process)
        )

    def _of_node(self, node: str) -> list[int]:
        """Step managers of a node and the processes under them."""
        log = f"{self.at}/slurmd-{node}.log"
        parents = {p: _parent(p) for p in members(str(self.conf))}
        managers = {p for p in parents if "slurmstepd" in _words(p) and log in _open_files(p)}
        found = set(managers)
        while more := {p for p, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found)

    def _daemon(self, *words: str, name: str | None = None) -> None:
        with (self.at / "daemons.log").open("ab") as log:
            made = subprocess.Popen(
                words, env=self.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self.daemons[name or words[0]] = made


def wait_for(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Ask again and again until it is so."""
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)


def _environ(process: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(item.split("=", 1) for item in text.split("\0") if "=" in item)


def _words(process: int) -> str:
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
