"""Ranks of a training run without the seconds that importing torch takes: ``python nursery.py SOCKET``.

A process imports everything once and forks each rank from itself on request, so that a hundred faults fit into minutes.
A rank born here is a process like any other: it runs the real entry point with the launcher's environment, in a session
of its own, and dies of real signals.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PRELOADED = (
    "torch", "timm", "deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.stage_1_and_2", "nvidia.dali.fn", "safetensors.torch", "scipy.special", "torchmetrics",
    "pyarrow.parquet", "brain_dist.train", "brain_dist.engine",
    "brain_dist.tracking", "brain_dist.metrics", "brain_dist.saving",
    "brain_dist.resume", "brain_dist.rundir", "brain_dist.predictions", "brain_dist.loaders.dali", "brain_dist.watch",
)  # fmt: skip


QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # as a rank sets it for itself, before torch is loaded
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Nursery:
    """The nursery process, from the outside."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        """Start it; ``folder`` takes its socket, ``environment`` is what every rank inherits."""
        path = folder / "nursery"
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen(1)
        words = [sys.executable, str(HERE / "nursery.py"), str(path)]
        self.process = subprocess.Popen(words, cwd=ROOT, env={**environment, "DS_ACCELERATOR": "cpu", **QUIET})
        listening.settimeout(120)
        self.socket, _ = listening.accept()
        listening.close()
        self.answers = self.socket.makefile("r")

    def ask(self, **request: Any) -> Any:
        """One request, one answer."""
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        return json.loads(self.answers.readline())

    def close(self) -> None:
        """End it, and every rank that is left."""
        self.answers.close()
        self.socket.close()
        self.process.wait(timeout=30)


class Ranks:
    """The ranks of one run; ``log`` takes what they print."""

    def __init__(
        self, nursery: Nursery, count: int, arguments: Sequence[str], log: Path, inside: dict[str, Any],
        *, everywhere: bool = False,
    ) -> None:  # fmt: skip
        """Start them. ``inside``: what :mod:`inject` does in the one that it names, or ``everywhere``."""
        sys.path.insert(0, str(ROOT))
        from launch.local import environment, free_port

        port = free_port()
        self.nursery = nursery
        self.log = log
        self.codes: dict[int, int | None] = {}
        for rank in range(count):
            mine = inside if everywhere or inside.get("rank") == rank else {}
            env = environment(rank, count, port)
            start = {"arguments": list(arguments), "env": {n: env[n] for n in NAMES}, "log": str(log), "fault": mine}
            self.codes[nursery.ask(start=start)] = None

    @property
    def pids(self) -> list[int]:
        """Process ids, by rank."""
        return list(self.codes)

    def running(self) -> bool:
        """Whether any rank is left."""
        for pid, code in self.codes.items():
            if code is None:
                self.codes[pid] = self.nursery.ask(poll=pid)
        return None in self.codes.values()

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to a rank, if it is there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pids[rank], number)

    def wait(self, timeout: float) -> list[int]:
        """Exit codes by rank (minus the signal's number), once all have ended; the late are killed, and told of."""
        until = time.monotonic() + timeout
        while self.running():
            if time.monotonic() > until:
                for rank in range(len(self.pids)):
                    self.signal(rank, signal.SIGKILL)
                while self.running():
                    time.sleep(0.01)
                raise TimeoutError(f"ranks still ran after {timeout:.0f} s:\n{self.log.read_text()}")
            time.sleep(0.01)
        return [code for code in self.codes.values() if code is not None]


def serve(path: str) -> None:
    """Fork on request until the other end hangs up."""
    for name in PRELOADED:
        importlib.import_module(name)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    alive: set[int] = set()
    for line in connection.makefile("r"):
        request = json.loads(line)
        answer: int | None
        if "start" in request:
            answer = os.fork()
            if not answer:
                os.dup2(os.open(os.devnull, os.O_RDWR), connection.fileno())  # a rank must not hold the line open
                be_rank(**request["start"])
            alive.add(answer)
        else:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
            alive -= {pid}
        connection.sendall(json.dumps(answer).encode() + b"\n")
    for pid in alive:
        os.kill(pid, signal.SIGKILL)


def be_rank(arguments: list[str], env: dict[str, str], log: str, fault: dict[str, Any]) -> None:
    """Become a rank; does not return."""
    os.setsid()
    os.environ.update(env)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(written, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    from brain_dist import train
    from brain_dist.errors import run

    if fault:
        import inject

        if "record" in fault:
            inject.record(fault["record"])
        elif "place" in fault:
            inject.prepare(**fault)
        else:
            inject.count_all(**fault)
    sys.argv = ["train", *arguments]
    sys.exit(run(train.main))


if __name__ == "__main__":
    serve(sys.argv[1])
