"""Start a verb on several machines without SLURM: ``python launch/hosts.py HOSTFILE VERB [ARGUMENT …]``.

HOSTFILE is what deepspeed takes: a line ``HOST slots=N`` a machine, N processes on it. Each machine is reached by ssh
and runs ``launch/local.py`` in a folder of this same path, so that exit codes (2, 75) are kept and signals are passed
on; torchrun and deepspeed start the same entry point, and turn every exit code into 1.
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

from launch.local import wait

# what every machine gets as it is here; keys of accounts stay here
SHARED = re.compile(r"(NCCL|GLOO|WANDB|HF|OMP|CUDA|DS)_(?!\w*KEY)\w+|PATH|LD_LIBRARY_PATH")


def main() -> int:
    """Parse, start, wait; the exit code is the first failing machine's."""
    parser = argparse.ArgumentParser("launch/hosts.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--port", type=int, default=29500, help="of the first machine, free there (default: 29500)")
    parser.add_argument("--ssh", default="ssh", help='how to reach a machine, such as "ssh -p 2222" (default: ssh)')
    parser.add_argument("hostfile", type=Path, help="lines of HOST slots=N")
    parser.add_argument("verb", help="train or evaluate")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the verb's own arguments")
    wanted = parser.parse_args()
    if not 0 < wanted.port < 2**16:
        parser.error(f"--port {wanted.port}: needs 1 to {2**16 - 1}")
    try:
        hosts = read(wanted.hostfile.read_text())
    except (OSError, ValueError) as error:
        parser.error(f"{wanted.hostfile}: {error}")
    address = next(iter(hosts)).rpartition("@")[2]
    variables = [f"{name}={value}" for name, value in os.environ.items() if SHARED.fullmatch(name)]
    processes, first, meeting = [], 0, os.urandom(4).hex()
    for host, slots in hosts.items():
        part = f"{first},{sum(hosts.values())},{address},{wanted.port},{meeting}"
        words = ["env", *variables, sys.executable, "launch/local.py", "-n", str(slots), "--part", part]
        script = f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join([*words, wanted.verb, *wanted.arguments])}"
        processes.append(
            subprocess.Popen([*shlex.split(wanted.ssh), "-o", "BatchMode=yes", host, script], stdin=subprocess.PIPE)
        )
        first += slots

    def forward(number: int, frame: object) -> None:
        for process in processes:
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # that machine is done
                process.stdin.write(f"{int(number)}\n".encode())
                process.stdin.flush()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, forward)
    return wait(processes)


def read(text: str) -> dict[str, int]:
    """Machines and their numbers of processes, in the file's order; ValueError names the line that tells neither."""
    hosts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        slots = re.fullmatch(r"slots=([1-9]\d*)", words[1]) if len(words) == 2 else None
        if not slots or words[0] in hosts:
            raise ValueError(f"line {number} is {'not HOST slots=N' if not slots else 'the same host again'}: {line}")
        hosts[words[0]] = int(slots[1])
    if not hosts:
        raise ValueError("no machine in it")
    return hosts


if __name__ == "__main__":
    sys.exit(main())
