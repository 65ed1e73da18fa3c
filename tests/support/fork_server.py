"""A process that has imported torch and forks ranks on request: ``python fork_server.py SOCKET``.

Importing torch, DeepSpeed and DALI takes seconds per process. The fork server imports them once, so that most tests and
a hundred faults fit into minutes. A forked rank behaves like a started one: it runs the real entry point with the
launcher's environment, in its own session, and dies of real signals. Tests of the launchers and of imports start
processes in the normal way.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
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

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.support.namespaces import DEVICE, PORT  # noqa: E402
from brain_dist.ranks.world import SECRET, START_ID, STORE_FD, listen  # noqa: E402
from launch.local import Placement  # noqa: E402

# Heavy packages, and modules of brain_dist that have no effect when imported
PRELOADED = (
    "brain_dist.errors", "torch", "timm", "deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage3", "deepspeed.runtime.zero.stage_1_and_2", "nvidia.dali.fn", "safetensors.torch",
    "scipy.special", "torchmetrics", "pandas", "jsonargparse", "pyarrow.parquet", "brain_dist.train",
    "brain_dist.training.start",
    "brain_dist.tracking.tracker", "brain_dist.tracking.run_folder", "brain_dist.judging.metrics",
    "brain_dist.judging.predictions", "brain_dist.stream.dali_loader", "brain_dist.ranks.watch",
)  # fmt: skip
# Set before torch is loaded, as ranks/world.py does in a rank
BEFORE_TORCH = {"TORCH_CPP_LOG_LEVEL": "ERROR", "DS_ACCELERATOR": "cpu", SECRET: "of the tests"}
FIRST_ADDRESS = "10.77.0.1"  # of the first network namespace
RANK_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    START_ID,
)


class ForkServer:
    """Client of the fork server process.

    Args:
        folder: Folder for the socket.
        environment: Environment that every rank inherits.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        path = folder / "fork-server"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            command = [sys.executable, __file__, str(path)]
            self.process = subprocess.Popen(command, cwd=ROOT, env={**environment, **BEFORE_TORCH})
            self.socket = self._accept(listener)
        self.replies = self.socket.makefile("r")

    def _accept(self, listener: socket.socket) -> socket.socket:
        """Wait for the server's connection; the first start on a machine compiles every package."""
        listener.settimeout(1)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                return listener.accept()[0]
            assert self.process.poll() is None, "the fork server failed to start"
        raise TimeoutError("the fork server did not start")

    def request(self, name: str, argument: Any = None) -> Any:
        """Send one request, see :class:`Server`, and return the reply."""
        self.socket.sendall(json.dumps([name, argument]).encode() + b"\n")
        return json.loads(self.replies.readline())

    def close(self) -> None:
        """Stop the server and kill the ranks that still run."""
        self.replies.close()
        self.socket.close()
        self.process.wait(timeout=30)


class Ranks:
    """Processes of one verb, started by a fork server.

    Attributes:
        pids: Process ids by rank.
        codes: Exit codes by rank, minus the signal's number after a signal; None while the rank runs.
        log: File with the standard output.
        port: Port of the rendezvous; 0 for one process.
    """

    def __init__(
        self, server: ForkServer, count: int, verb: str, arguments: Sequence[str], out: Path, err: Path | None = None,
        *, env: Mapping[str, str] | None = None, inject: Mapping[str, Any] | None = None,
        namespaces: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Start ``count`` processes of a verb. One process runs without a launcher's variables.

        Args:
            server: The fork server.
            count: Number of ranks.
            verb: Module of brain_dist to run.
            arguments: The verb's arguments.
            out: File for the standard output.
            err: File for the standard error; default: ``out``.
            env: Environment variables in addition to the server's.
            inject: Arguments of :func:`inject.prepare`; with a ``rank`` for that rank only, else for all.
            namespaces: Network namespace of each rank, from ``benchmarks.support.namespaces.network``.
        """
        self.server, self.log = server, out
        self.codes: list[int | None] = [None] * count
        self.pids: list[int] = []
        if namespaces:  # a socket of the server would be in another network
            store, self.port = 0, PORT
            env = {"GLOO_SOCKET_IFNAME": DEVICE, **(env or {})}
        else:
            store, self.port = server.request("listen") if count > 1 else (0, 0)
        address = FIRST_ADDRESS if namespaces else "127.0.0.1"
        placement = Placement(count, address=address, port=self.port, start_id=str(self.port))
        injected_rank = (inject or {}).get("rank")
        for rank in range(count):
            variables: dict[str, str] = {}
            if count > 1:
                launcher = placement.environment(rank)
                variables = {name: launcher[name] for name in RANK_VARIABLES}
                if store and rank == 0:
                    variables[STORE_FD] = str(store)
            rank_request = {
                "verb": verb, "arguments": list(arguments), "out": str(out), "err": str(err or out),
                "env": {**variables, **(env or {})},
                "injection": dict(inject or {}) if injected_rank in (None, rank) else {},
                "namespace": namespaces[rank] if namespaces else "",
            }  # fmt: skip
            self.pids.append(server.request("start", rank_request))
            if store and rank == 0:
                server.request("close", store)  # from now on only rank 0 has it, as with a launcher

    def running(self) -> bool:
        """Whether any rank still runs; updates ``codes``."""
        for rank, pid in enumerate(self.pids):
            if self.codes[rank] is None:
                self.codes[rank] = self.server.request("poll", pid)
        return None in self.codes

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to a rank unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pids[rank], number)

    def wait(self, timeout: float) -> list[int]:
        """Wait until all ranks have ended; return their exit codes.

        Raises:
            TimeoutError: ranks still ran after ``timeout`` seconds, and were killed.
        """
        deadline = time.monotonic() + timeout
        while self.running():
            if time.monotonic() > deadline:
                for rank in range(len(self.pids)):
                    self.signal(rank, signal.SIGKILL)
                while self.running():
                    time.sleep(0.01)
                raise TimeoutError(f"ranks still ran after {timeout:.0f} s:\n{self.log.read_text()}")
            time.sleep(0.01)
        return [code for code in self.codes if code is not None]


class Server:
    """The requests that a fork server answers; each method is one request."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.running: set[int] = set()

    def listen(self, _: None) -> tuple[int, int]:
        """Open a socket for the rendezvous; return its file descriptor and port."""
        listener = listen("127.0.0.1", 0, local=True)
        port = listener.getsockname()[1]
        return listener.detach(), port

    def close(self, descriptor: int) -> None:
        """Close a file descriptor."""
        os.close(descriptor)

    def start(self, arguments: dict[str, Any]) -> int:
        """Fork a rank; return its process id."""
        pid = os.fork()
        if pid == 0:
            # the rank must not keep the connection open
            os.dup2(os.open(os.devnull, os.O_RDWR), self.connection.fileno())
            become_rank(**arguments)
        self.running.add(pid)
        return pid

    def poll(self, pid: int) -> int | None:
        """Exit code of a rank, or None while it runs."""
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            return None
        self.running.discard(pid)
        return os.waitstatus_to_exitcode(status)

    def serve(self) -> None:
        """Answer requests until the client closes the connection, then kill all ranks."""
        for line in self.connection.makefile("r"):
            name, argument = json.loads(line)
            reply = getattr(self, name)(argument)
            self.connection.sendall(json.dumps(reply).encode() + b"\n")
        for pid in self.running:
            os.kill(pid, signal.SIGKILL)


def become_rank(
    verb: str, arguments: list[str], out: str, err: str, env: dict[str, str], injection: dict[str, Any], namespace: str
) -> None:
    """Turn this forked process into ``python -m brain_dist.VERB``; does not return."""
    os.setsid()
    os.environ.update(env)
    if namespace:
        ctypes.CDLL(None).setns(os.open(f"/run/netns/{namespace}", os.O_RDONLY), 0)
    tempfile.tempdir = None  # TMPDIR may differ in this environment
    forget_temporary_folders()
    for descriptor, name in ((1, out), (2, err)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    from brain_dist.errors import leave

    if injection:
        import inject

        inject.prepare(**injection)
    module = importlib.import_module(f"brain_dist.{verb}")
    sys.argv = [str(module.__file__), *arguments]
    leave(module.main)


def forget_temporary_folders() -> None:
    """Keep this process from removing temporary folders that packages made in the fork server."""
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.detach()
    media = sys.modules.get("wandb.sdk.data_types._private")
    if media is not None:
        atexit.unregister(media.MEDIA_TMP.cleanup)


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # otherwise the garbage collector of each rank visits, and so copies, all imported objects
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(sys.argv[1])
        Server(connection).serve()


if __name__ == "__main__":
    main()
