"""Start a verb on several machines without SLURM: ``python launch/hosts.py HOSTFILE VERB [ARGUMENT …]``.

HOSTFILE has DeepSpeed's format: one line ``HOST slots=N`` per machine, with N the number of processes on it. Each
machine is reached by ssh and runs ``launch/local.py`` in a folder with the same path as this one. Unlike torchrun and
deepspeed, which turn every failure into exit code 1, this keeps exit codes (2, 75) and forwards signals.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from brain_dist.cli import COMMANDS
from brain_dist.common.commands import ArgumentParser
from brain_dist.errors import leave
from brain_dist.ranks.world import SECRET
from launch.local import Processes, catch_signals, wait

# Variables that every machine gets, by standard input, as all users can see command lines. Accounts (WANDB_API_KEY,
# HF_TOKEN) stay on their machine.
FORWARDED = re.compile(
    r"(NCCL|GLOO|OMP|CUDA|DS)_\w+|HF_(HOME|HUB_OFFLINE|HUB_CACHE|ENDPOINT)"
    r"|WANDB_(MODE|DIR|CACHE_DIR|PROJECT|ENTITY|BASE_URL|RUN_GROUP|NAME|TAGS|NOTES|DISABLED|SILENT)"
)
SEARCH_PATHS = ("PATH", "LD_LIBRARY_PATH")  # without which Python may not start


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
    catch_signals(lambda number: forward(processes, number))
    return wait(processes)


def argument_parser() -> ArgumentParser:
    """The command line of this script."""
    parser = ArgumentParser("launch/hosts.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--port", type=int, default=29500, help="a free port on the first machine (default: 29500)")
    parser.add_argument("--ssh", default="ssh", help='ssh command, such as "ssh -p 2222" (default: ssh)')
    parser.add_argument("hostfile", type=Path, help="file with lines HOST slots=N")
    parser.add_argument("verb", choices=COMMANDS, metavar="VERB", help="a command, such as train or evaluate")
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
    """Start one ssh process per host; its standard input carries environment variables and signal numbers."""
    address = next(iter(hosts)).rpartition("@")[2]
    start_id = os.urandom(4).hex()
    paths = [f"{name}={os.environ[name]}" for name in SEARCH_PATHS if name in os.environ]
    variables = {name: value for name, value in os.environ.items() if FORWARDED.fullmatch(name)}
    variables[SECRET] = os.environ.get(SECRET) or os.urandom(32).hex()
    processes: Processes = []
    first_rank = 0
    for host, slots in hosts.items():
        part = f"{first_rank},{sum(hosts.values())},{address},{arguments.port},{start_id}"
        launcher = ["env", *paths, sys.executable, "launch/local.py", "-n", str(slots), "--part", part]
        remote_command = shlex.join([*launcher, arguments.verb, *arguments.arguments])
        script = f"cd {shlex.quote(str(Path.cwd()))} && exec {remote_command}"
        ssh = [*shlex.split(arguments.ssh), "-o", "BatchMode=yes", host, script]
        process = subprocess.Popen(ssh, stdin=subprocess.PIPE, start_new_session=True)
        processes.append(process)
        send(process, json.dumps(variables))
        first_rank += slots
    return processes


def forward(processes: Processes, number: int) -> None:
    """Send a signal number to every machine."""
    for process in processes:
        send(process, str(int(number)))


def send(process: subprocess.Popen[bytes], line: str) -> None:
    """Send a line to launch/local.py on a machine."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # that machine has finished
        process.stdin.write(f"{line}\n".encode())
        process.stdin.flush()


if __name__ == "__main__":
    leave(main)
