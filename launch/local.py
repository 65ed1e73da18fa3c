"""Start N processes of a verb on this machine: ``python launch/local.py [-n N] [--restarts R] VERB [ARGUMENT …]``.

Like ``torchrun --standalone``, but it imports nothing heavy, keeps a verb's exit code (2: the user's mistake, 75:
stopped after a clean save), passes signals on, and ends the others soon after one process fails, so that none waits
for a dead peer. After a fault (a killed process, a lost device) it starts all of them again, up to R times: training
goes on from its newest checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

NO_FAULT = (0, 2, 75)  # done, the user's mistake, stopped after a clean save
GRACE = 10.0  # seconds that the others get to end by themselves, and again between SIGTERM and SIGKILL
STORE = "BRAIN_DIST_STORE_FD"  # rank 0's variable with the number of the open socket, read in brain_dist/ranks/world.py
SAVE = 120.0  # seconds to save, for processes whose launcher on another machine is gone


def main() -> int:
    """Parse, start, wait; the exit code is the first failing process's."""
    parser = argparse.ArgumentParser("launch/local.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("-n", "--processes", type=int, help="processes to start (default: one a GPU, else one)")
    parser.add_argument("--restarts", type=int, default=0, help="times to start anew after a fault (default: 0)")
    parser.add_argument("--part", metavar="FIRST,WORLD,ADDRESS,PORT,MEETING", help="set by launch/hosts.py")
    parser.add_argument("verb", help="train or evaluate")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the verb's own arguments")
    wanted = parser.parse_args()
    for name in ("processes", "restarts"):
        value = getattr(wanted, name)
        if value is not None and value < (name == "processes"):
            parser.error(f"--{name} {value}: needs at least {int(name == 'processes')}")
    count = wanted.processes or gpus() or 1
    part = Part.read(wanted.part, count) if wanted.part else Part(count)
    command = [sys.executable, "-m", f"brain_dist.{wanted.verb}", *wanted.arguments]
    processes: list[subprocess.Popen[bytes]] = []
    asked = False

    def forward(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, forward)
    if wanted.part:
        threading.Thread(target=obey, args=(processes, lambda number: forward(number, None)), daemon=True).start()
    for left in range(wanted.restarts, -1, -1):
        try:
            processes[:] = start(command, part, stdin=subprocess.DEVNULL if wanted.part else None)
        except OSError as error:
            if not part.port:
                raise
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            parser.error(f"port {part.port} of {part.address} {why}; give launch/hosts.py another --port")
        if asked:  # while they were being started
            forward(signal.SIGTERM, None)
        code = wait(processes)
        if asked or not left or code in NO_FAULT:
            break
        print(f"launch: starting all {count} processes anew, {left - 1} times left", file=sys.stderr, flush=True)
    return code


def obey(processes: list[subprocess.Popen[bytes]], send: Callable[[int], None]) -> None:
    """Signals whose numbers come in by standard input; when it closes, launch/hosts.py or the network is gone."""
    for line in sys.stdin:
        send(int(line))
    send(signal.SIGTERM)
    time.sleep(SAVE)
    for process in processes:
        if process.poll() is None:
            process.kill()


def gpus() -> int:
    """GPUs that this shell may use, without asking a driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name])
    return len([node for node in Path("/dev").glob("nvidia[0-9]*") if node.name[6:].isdigit()])


@dataclass(frozen=True)
class Part:
    """This machine's ``count`` ranks of a run, and where all of the run's ranks meet."""

    count: int
    first: int = 0
    world: int = 0  # 0: these are all
    address: str = "127.0.0.1"
    port: int = 0  # 0: any free one
    meeting: str = ""  # names this start, so that a process that another one left behind meets nobody

    @classmethod
    def read(cls, text: str, count: int) -> Part:
        """What launch/hosts.py gives to --part."""
        first, world, address, port, meeting = text.split(",")
        return cls(count, int(first), int(world), address, int(port), meeting)

    def environment(self, rank: int) -> dict[str, str]:
        """The variables that torch.distributed knows, for this machine's process ``rank``, and its share of cores."""
        names = {
            "RANK": self.first + rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": self.world or self.count,
            "LOCAL_WORLD_SIZE": self.count,
            "MASTER_ADDR": self.address,
            "MASTER_PORT": self.port,
            "BRAIN_DIST_MEETING": self.meeting,
        }
        # what was set by hand wins over the share of cores, never over the ranks
        share = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // self.count))}
        return {**share, **os.environ, **{name: str(value) for name, value in names.items()}}


def start(command: Sequence[str], part: Part, **options: Any) -> list[subprocess.Popen[Any]]:
    """Start this machine's processes; ``options`` are Popen's. OSError where the port is in use.

    Rank 0's machine listens from now on and hands the open socket to rank 0, so that nobody else can take the port in
    the seconds until torch is imported.
    """
    part = replace(part, meeting=part.meeting or os.urandom(4).hex())
    with contextlib.ExitStack() as held:
        server = None
        if not part.first and (part.world or part.count) > 1:
            server = held.enter_context(listen(part.port, everywhere=part.world > part.count))
            part = replace(part, port=server.getsockname()[1])
        started: list[subprocess.Popen[Any]] = []
        for rank in range(part.count):
            env, handed = part.environment(rank), []
            if server and not rank:
                handed = [server.fileno()]
                env[STORE] = str(server.fileno())
            started.append(subprocess.Popen(command, env=env, pass_fds=handed, **options))
    return started


def listen(port: int = 0, *, everywhere: bool = False) -> socket.socket:
    """A socket that listens at ``port`` (0: any free one), of this machine alone or for others too."""
    if not everywhere:
        return socket.create_server(("127.0.0.1", port))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def wait(processes: list[subprocess.Popen[bytes]]) -> int:
    """Exit code of the first process that failed, once all have ended; 0 when none did."""
    first = 0
    failed_at = asked_at = None
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)
        codes = [(code, rank) for rank, process in enumerate(processes) if (code := process.poll())]
        now = time.monotonic()
        if codes and failed_at is None:
            (first, rank), failed_at = codes[0], now
            if first < 0:  # it could not say so itself
                name = signal.Signals(-first).name
                print(f"launch: process {rank} was ended by {name}", file=sys.stderr, flush=True)
        if failed_at is not None and asked_at is None and now - failed_at > GRACE:
            asked_at = now
            for process in processes:
                if process.poll() is None:
                    process.terminate()
        if asked_at is not None and now - asked_at > GRACE:
            for process in processes:
                if process.poll() is None:
                    process.kill()
    first = first or next((code for process in processes if (code := process.returncode)), 0)
    return first if first >= 0 else 128 - first  # a signal's number, as a shell tells it


if __name__ == "__main__":
    sys.exit(main())
