"""Processes of the program without the seconds that importing torch takes: ``python nursery.py SOCKET``.

A process imports everything once and forks from itself on request, so that a hundred faults, and most tests, fit into
minutes. What is born here is a process like any other: it runs the real entry point with the launcher's environment, in
a session of its own, and dies of real signals. The launchers themselves, and imports, are tested with cold starts.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# heavy packages, and our own modules that import nothing when they are called; the verbs themselves stay cold
PRELOADED = (
    "brain_dist.errors", "torch", "timm", "deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage3", "deepspeed.runtime.zero.stage_1_and_2", "nvidia.dali.fn", "safetensors.torch",
    "scipy.special", "torchmetrics", "pandas", "jsonargparse", "pyarrow.parquet", "brain_dist.train",
    "brain_dist.training.engine", "brain_dist.training.saving", "brain_dist.training.resume",
    "brain_dist.tracking.tracker", "brain_dist.tracking.run_folder", "brain_dist.judging.metrics",
    "brain_dist.judging.predictions", "brain_dist.stream.dali", "brain_dist.ranks.watch",
)  # fmt: skip


QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # as a rank sets it for itself, before torch is loaded
NAMES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "BRAIN_DIST_MEETING",
    "BRAIN_DIST_STORE_FD",
)


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
        listening.settimeout(300)  # the first start of a machine compiles every package
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
    """Processes of a verb that were born in a nursery; ``log`` takes what they print."""

    def __init__(
        self, nursery: Nursery, count: int, verb: str, arguments: Sequence[str], out: Path, err: Path | None = None,
        *, env: Mapping[str, str] | None = None, inside: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Start ``count`` processes of a verb: ranks of one run, or, where that is one, a process alone.

        ``out`` and ``err`` take what they print (one file, where ``err`` is None); ``env`` is added to the nursery's
        environment; ``inside`` is what :mod:`inject` does in the rank that it names, or in all.
        """
        sys.path.insert(0, str(ROOT))
        from launch.local import STORE, Part

        self.nursery, self.log = nursery, out
        self.codes: dict[int, int | None] = {}
        held, port = nursery.ask(listen=True) if count > 1 else (0, 0)
        for rank in range(count):
            mine = dict(inside or {})
            ranked = Part(count, port=port, meeting=str(port)).environment(rank) if count > 1 else {}
            if held and not rank:
                ranked[STORE] = str(held)
            self.codes[nursery.ask(start={
                "verb": verb, "arguments": list(arguments), "out": str(out), "err": str(err or out),
                "env": {**{n: ranked[n] for n in NAMES if n in ranked}, **(env or {})},
                "inside": mine if mine.get("rank", rank) == rank else {},
            })] = None  # fmt: skip
            if held and not rank:
                nursery.ask(close=held)  # as a launcher does: it is rank 0's alone

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
    sys.path.insert(0, str(ROOT))
    from launch.local import listen

    gc.freeze()  # else each child's garbage collector goes through, and so copies, all that was imported: seconds
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    alive: set[int] = set()
    for line in connection.makefile("r"):
        request = json.loads(line)
        answer: Any
        if "listen" in request:
            held = listen()
            answer = held.fileno(), held.getsockname()[1]
            held.detach()
        elif "close" in request:
            answer = os.close(request["close"])
        elif "start" in request:
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


def be_rank(verb: str, arguments: list[str], out: str, err: str, env: dict[str, str], inside: dict[str, Any]) -> None:
    """Become a process of ``python -m brain_dist.VERB``; does not return."""
    os.setsid()
    os.environ.update(env)
    tempfile.tempdir = None  # it may be another one in this environment
    for inherited in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        inherited.detach()  # temporary folders that packages made in the nursery are not a child's to remove
    media = sys.modules.get("wandb.sdk.data_types._private")
    if media is not None:
        atexit.unregister(media.MEDIA_TMP.cleanup)
    for number, name in ((1, out), (2, err)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    from brain_dist.errors import leave

    if inside:
        import inject

        inject.prepare(**inside)
    module = importlib.import_module(f"brain_dist.{verb}")
    sys.argv = [str(module.__file__), *arguments]
    leave(module.main)


if __name__ == "__main__":
    serve(sys.argv[1])
