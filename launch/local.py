"""Start N processes of a verb on this machine: ``python launch/local.py [-n N] [--restarts R] VERB [ARGUMENT …]``.

Like ``torchrun --standalone``, but it imports nothing heavy, keeps a verb's exit code (2: the user's mistake, 75:
stopped after a clean save), passes signals on, and ends the others soon after one process fails, so that none waits
for a dead peer. After a fault (a killed process, a lost device) it starts all of them again, up to R times: training
goes on from its newest checkpoint.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

NO_FAULT = (0, 2, 75)  # done, the user's mistake, stopped after a clean save
GRACE = 10.0  # seconds that the others get to end by themselves, and again between SIGTERM and SIGKILL
SAVE = 120.0  # seconds to save, for processes whose launcher on another machine is gone


def main() -> int:
    """Parse, start, wait; the exit code is the first failing process's."""
    parser = argparse.ArgumentParser("launch/local.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("-n", "--processes", type=int, help="processes to start (default: one a GPU, else one)")
    parser.add_argument("--restarts", type=int, default=0, help="times to start anew after a fault (default: 0)")
    parser.add_argument("--part", metavar="FIRST,WORLD,ADDRESS,PORT", help="set by launch/hosts.py")
    parser.add_argument("verb", help="train or evaluate")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the verb's own arguments")
    wanted = parser.parse_args()
    for name in ("processes", "restarts"):
        value = getattr(wanted, name)
        if value is not None and value < (name == "processes"):
            parser.error(f"--{name} {value}: needs at least {int(name == 'processes')}")
    count = wanted.processes or gpus() or 1
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
        first, world, address, port = (wanted.part or f"0,{count},127.0.0.1,{free_port()}").split(",")
        processes[:] = [
            subprocess.Popen(
                command,
                env=environment(rank, count, port, first=int(first), world=int(world), address=address),
                stdin=subprocess.DEVNULL if wanted.part else None,
            )
            for rank in range(count)
        ]
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


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(
    rank: int, count: int, port: int | str, *, first: int = 0, world: int | None = None, address: str = "127.0.0.1"
) -> dict[str, str]:
    """The variables that torch.distributed knows; the cores are shared out between this machine's ``count`` processes.

    ``first`` is the rank of this machine's first one of ``world``.
    """
    names = {
        "RANK": first + rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world or count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": max(1, len(os.sched_getaffinity(0)) // count),
    }
    # what was set by hand wins over the share of cores, never over the ranks
    kept = {"OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]} if "OMP_NUM_THREADS" in os.environ else {}
    return {**os.environ, **{name: str(value) for name, value in names.items()}, **kept}


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
