"""Start N processes of a verb on this machine: ``python launch/local.py [-n N] [--restarts R] VERB [ARGUMENT …]``.

Replaces ``torchrun --standalone``. It imports nothing heavy, keeps a verb's exit code (2: user error, 75: stopped after
a clean save), forwards signals, and ends the other processes soon after one fails, so that none waits for a dead peer.
If it is killed itself, its processes get SIGTERM. With ``--restarts`` it starts all processes again after a fault (a
killed process, a lost device), up to R times. Training then resumes from its newest checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from brain_dist.cli import COMMANDS
from brain_dist.common.children import stop_with_parent
from brain_dist.common.commands import ArgumentParser
from brain_dist.errors import leave
from brain_dist.ranks.world import SECRET, START_ID, STORE_FD, listen

GRACE = 10.0  # seconds from the first failure to SIGTERM for the other processes, and from SIGTERM to SIGKILL
SAVE_TIME = 120.0  # seconds that processes get to save after the connection to launch/hosts.py closed

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
# Exit codes: success, user error, some files unreadable, stopped after a clean save, or asked to stop before there was
# anything to save
NOT_RESTARTED = (0, 2, 3, 75, *(128 + number for number in FORWARDED))

Processes = list[subprocess.Popen[Any]]


def main() -> int:
    """Parse the command line and run the processes; return the exit code of the first process that failed."""
    parser = argument_parser()
    arguments = parser.parse_args()
    if arguments.processes is not None and arguments.processes < 1:
        parser.error(f"--processes {arguments.processes}: must be ≥ 1")
    if arguments.restarts < 0:
        parser.error(f"--restarts {arguments.restarts}: must be ≥ 0")
    local_size = arguments.processes or gpus() or 1
    placement = Placement.parse(arguments.part, local_size) if arguments.part else Placement(local_size)
    command = [sys.executable, "-m", f"brain_dist.{arguments.verb}", *arguments.arguments]
    launcher = Launcher(command, placement, remote=bool(arguments.part))
    try:
        return launcher.run(arguments.restarts)
    except OSError as error:
        if not placement.port:
            raise
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        parser.error(f"port {placement.port} of {placement.address} {reason}; give launch/hosts.py another --port")


def argument_parser() -> ArgumentParser:
    """The command line of this script."""
    parser = ArgumentParser("launch/local.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("-n", "--processes", type=int, help="number of processes (default: one per GPU, else one)")
    parser.add_argument("--restarts", type=int, default=0, help="maximum number of restarts after a fault (default: 0)")
    parser.add_argument("--part", metavar="FIRST_RANK,WORLD_SIZE,ADDRESS,PORT,ID", help="set by launch/hosts.py")
    parser.add_argument("verb", choices=COMMANDS, metavar="VERB", help="a command, such as train or evaluate")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the verb's own arguments")
    return parser


def gpus() -> int:
    """Number of GPUs that this shell may use, without a call to the driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name])
    return len([node for node in Path("/dev").glob("nvidia[0-9]*") if node.name[6:].isdigit()])


@dataclass(frozen=True)
class Placement:
    """The ranks that this machine runs, and the rendezvous of all ranks.

    Attributes:
        local_size: Number of ranks on this machine.
        first_rank: Rank of this machine's first process.
        world_size: Number of ranks on all machines; 0 means ``local_size``.
        address: Address of rank 0's machine.
        port: Port of the rendezvous on that machine; 0 means any free port.
        start_id: Identifies this start, so that a process left over from an earlier start cannot join.
    """

    local_size: int
    first_rank: int = 0
    world_size: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    start_id: str = ""

    @classmethod
    def parse(cls, text: str, local_size: int) -> Placement:
        """Read the value of ``--part``."""
        first_rank, world_size, address, port, start_id = text.split(",")
        return cls(local_size, int(first_rank), int(world_size), address, int(port), start_id)

    def environment(self, local_rank: int) -> dict[str, str]:
        """Environment of one process, with torch.distributed's variables."""
        variables = {
            "RANK": self.first_rank + local_rank,
            "LOCAL_RANK": local_rank,
            "WORLD_SIZE": self.world_size or self.local_size,
            "LOCAL_WORLD_SIZE": self.local_size,
            "MASTER_ADDR": self.address,
            "MASTER_PORT": self.port,
            START_ID: self.start_id,
        }
        return {**os.environ, **{name: str(value) for name, value in variables.items()}}


class Launcher:
    """Runs the processes of one verb on this machine, forwards signals to them and restarts them after a fault."""

    def __init__(self, command: Sequence[str], placement: Placement, *, remote: bool) -> None:
        """Set up a launcher that has not started anything yet.

        Args:
            command: Command of each process.
            placement: Ranks to start.
            remote: Started by launch/hosts.py, which sends lines by standard input: a JSON object with environment
                variables of the processes, then the numbers of signals.
        """
        self.command, self.placement, self.remote = command, placement, remote
        self.processes: Processes = []
        self.stop_requested = False

    def run(self, restarts: int) -> int:
        """Start the processes and wait for them; return the exit code of the first that failed."""
        catch_signals(self.forward)
        if self.remote:
            os.environ |= json.loads(sys.stdin.readline() or "{}")
        while True:
            self.processes = start(self.command, self.placement)
            if self.remote:
                threading.Thread(target=self.forward_from_stdin, daemon=True).start()
            if self.stop_requested:  # the signal came before the processes were there
                self.forward(signal.SIGTERM)
            code = wait(self.processes)
            if self.stop_requested or not restarts or code in NOT_RESTARTED:
                return code
            restarts -= 1
            count = len(self.processes)
            print(f"launch: restarting all {count} processes, {restarts} restarts left", file=sys.stderr, flush=True)

    def forward(self, number: int) -> None:
        """Send a signal to all processes, SIGTERM for SIGHUP, and disable restarts."""
        self.stop_requested = True
        signal_running(self.processes, signal.SIGTERM if number == signal.SIGHUP else number)

    def forward_from_stdin(self) -> None:
        """Forward the signals that launch/hosts.py sends; stop the processes when the connection closes."""
        for line in sys.stdin:
            self.forward(int(line))
        self.forward(signal.SIGTERM)
        time.sleep(SAVE_TIME)
        signal_running(self.processes, signal.SIGKILL)


def catch_signals(forward: Callable[[int], None]) -> None:
    """Call ``forward`` for each signal in FORWARDED, unless it is ignored, as SIGHUP is under nohup."""
    for number in FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: forward(number))


def start(command: Sequence[str], placement: Placement, **options: Any) -> Processes:
    """Start this machine's processes.

    On rank 0's machine the launcher opens the rendezvous socket and passes it to rank 0. Otherwise another program
    could take the port in the seconds until torch is imported. Each process is in its own session, so that Ctrl-C
    reaches it once, through the launcher.

    Args:
        command: Command of each process.
        placement: Ranks to start.
        options: Further arguments of ``subprocess.Popen``.

    Raises:
        OSError: the port of the rendezvous is in use.
    """
    placement = replace(placement, start_id=placement.start_id or os.urandom(4).hex())
    secret = os.environ.get(SECRET) or os.urandom(32).hex()
    with contextlib.ExitStack() as stack:
        server = None
        if placement.first_rank == 0 and (placement.world_size or placement.local_size) > 1:
            local = (placement.world_size or placement.local_size) == placement.local_size
            server = stack.enter_context(listen(placement.address, placement.port, local=local))
            placement = replace(placement, port=server.getsockname()[1])
        processes: Processes = []
        for local_rank in range(placement.local_size):
            environment, inherited = {**placement.environment(local_rank), SECRET: secret}, []
            if server and local_rank == 0:
                inherited = [server.fileno()]
                environment[STORE_FD] = str(server.fileno())
            process = subprocess.Popen(
                command, env=environment, pass_fds=inherited, stdin=subprocess.DEVNULL, start_new_session=True,
                preexec_fn=partial(stop_with_parent, os.getpid()), **options,
            )  # fmt: skip
            processes.append(process)
        return processes


def wait(processes: Processes) -> int:
    """Wait until all processes have ended; return the exit code of the first that failed, or 0.

    ``GRACE`` seconds after the first failure the other processes get SIGTERM, and SIGKILL ``GRACE`` seconds later. The
    code of a process that signal S ended is 128 + S, as in a shell.
    """
    first_code = 0
    failed_at = terminated_at = None
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)
        now = time.monotonic()
        if failed_at is None:
            first_code = first_failure(processes)
            failed_at = now if first_code else None
        elif terminated_at is None and now - failed_at > GRACE:
            signal_running(processes, signal.SIGTERM)
            terminated_at = now
        elif terminated_at is not None and now - terminated_at > GRACE:
            signal_running(processes, signal.SIGKILL)
    first_code = first_code or first_failure(processes)
    return first_code if first_code >= 0 else 128 - first_code


def first_failure(processes: Processes) -> int:
    """Exit code of the lowest rank that has failed, or 0; prints the signal if one ended it."""
    for rank, process in enumerate(processes):
        code = process.poll()
        if code:
            if code < 0:
                name = signal.Signals(-code).name
                print(f"launch: process {rank} was ended by {name}", file=sys.stderr, flush=True)
            return code
    return 0


def signal_running(processes: Processes, number: int) -> None:
    """Send a signal to every process that still runs."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


if __name__ == "__main__":
    leave(main)
