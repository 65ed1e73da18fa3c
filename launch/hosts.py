"""Start a verb on several machines without SLURM: ``python launch/hosts.py HOSTFILE VERB [ARGUMENT …]``.

HOSTFILE has DeepSpeed's format: one line ``HOST slots=N`` per machine, with N the number of processes on it. Each
machine is reached by ssh and runs ``launch/local.py`` in a folder with the same path as this one. Unlike torchrun and
deepspeed, which turn every failure into exit code 1, this keeps exit codes (2, 75) and forwards signals.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch.local import Processes, wait

# Variables passed on to every machine; account keys (WANDB_API_KEY and the like) are not
FORWARDED = re.compile(r"(NCCL|GLOO|WANDB|HF|OMP|CUDA|DS)_(?!\w*KEY)\w+|PATH|LD_LIBRARY_PATH")


def main() -> int:
    """Parse the command line, start all machines and wait; return the exit code of the first that failed."""
    parser = argument_parser()
    arguments = parser.parse_args()
    if not 0 < arguments.port < 2**16:
        parser.error(f"--port {arguments.port}: must be 1 to {2**16 - 1}")
    try:
        hosts = read_hostfile(arguments.hostfile.read_text())
    except (OSError, ValueError) as error:
        parser.error(f"{arguments.hostfile}: {error}")
    processes = start(hosts, arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: forward(processes, number))
    return wait(processes)


def argument_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser("launch/hosts.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--port", type=int, default=29500, help="a free port on the first machine (default: 29500)")
    parser.add_argument("--ssh", default="ssh", help='ssh command, such as "ssh -p 2222" (default: ssh)')
    parser.add_argument("hostfile", type=Path, help="file with lines HOST slots=N")
    parser.add_argument("verb", help="train or evaluate")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the verb's own arguments")
    return parser


def read_hostfile(text: str) -> dict[str, int]:
    """Number of processes per host, in the order of the file.

    Raises:
        ValueError: a line is malformed or repeats a host, or the file lists no host.
    """
    hosts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split("#")[0].split()
        if not fields:
            continue
        slots = re.fullmatch(r"slots=([1-9]\d*)", fields[1]) if len(fields) == 2 else None
        if not slots:
            raise ValueError(f"line {number} is not HOST slots=N: {line}")
        if fields[0] in hosts:
            raise ValueError(f"line {number} repeats a host: {line}")
        hosts[fields[0]] = int(slots[1])
    if not hosts:
        raise ValueError("the file lists no host")
    return hosts


def start(hosts: dict[str, int], arguments: argparse.Namespace) -> Processes:
    """Start one ssh process per host; its standard input carries signal numbers."""
    address = next(iter(hosts)).rpartition("@")[2]
    start_id = os.urandom(4).hex()
    variables = [f"{name}={value}" for name, value in os.environ.items() if FORWARDED.fullmatch(name)]
    processes: Processes = []
    first_rank = 0
    for host, slots in hosts.items():
        part = f"{first_rank},{sum(hosts.values())},{address},{arguments.port},{start_id}"
        launcher = ["env", *variables, sys.executable, "launch/local.py", "-n", str(slots), "--part", part]
        remote_command = shlex.join([*launcher, arguments.verb, *arguments.arguments])
        script = f"cd {shlex.quote(str(Path.cwd()))} && exec {remote_command}"
        ssh = [*shlex.split(arguments.ssh), "-o", "BatchMode=yes", host, script]
        processes.append(subprocess.Popen(ssh, stdin=subprocess.PIPE))
        first_rank += slots
    return processes


def forward(processes: Processes, number: int) -> None:
    """Send a signal number to every machine."""
    for process in processes:
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # that machine has finished
            process.stdin.write(f"{int(number)}\n".encode())
            process.stdin.flush()


if __name__ == "__main__":
    sys.exit(main())
