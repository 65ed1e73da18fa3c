"""Processes on networks of known bandwidth, on one machine: a network namespace a rank, veth pairs, one bridge, tbf.

Each namespace's ``eth0`` may be given a rate by :func:`shape` from inside. Only root may make namespaces. They are
taken away at the end, also at an error, SIGINT, SIGTERM or SIGHUP.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

DEVICE = "eth0"
PORT = 29511  # in namespaces of our own every port is free
# Of each full Ethernet frame of 1514 bytes, which is what tbf counts, 1448 are TCP's payload (with its time stamps)
PAYLOAD = 1448 / 1514


def refusal() -> str | None:
    """Why no such network can be made here; None where it can."""
    if os.geteuid():
        return "needs root, to make network namespaces"
    missing = [name for name in ("ip", "tc") if not shutil.which(name)]
    return f"needs {' and '.join(missing)}, of the package iproute2" if missing else None


@contextlib.contextmanager
def network(ranks: int) -> Iterator[list[str]]:
    """Namespaces of that many ranks, each with an eth0 at 10.77.0.(rank + 1), joined by a bridge in one more."""
    names = [f"bd{os.getpid()}r{rank}" for rank in range(ranks)]
    middle = f"bd{os.getpid()}s"
    try:
        _ip("netns", "add", middle)
        _ip("-n", middle, "link", "add", "br0", "type", "bridge")
        _ip("-n", middle, "link", "set", "br0", "up")
        for rank, name in enumerate(names):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "add", DEVICE, "type", "veth", "peer", "name", f"p{rank}", "netns", middle)
            _ip("-n", middle, "link", "set", f"p{rank}", "master", "br0", "up")
            _ip("-n", name, "address", "add", f"10.77.0.{rank + 1}/24", "dev", DEVICE)
            for device in ("lo", DEVICE):
                _ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in [*names, middle]:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"ip {' '.join(words)}: {done.stderr.strip()}")


def shape(megabits: float | None) -> None:
    """Let this namespace's eth0 send at most that many Mbit/s; None: as fast as the machine can."""
    subprocess.run(["tc", "qdisc", "delete", "dev", DEVICE, "root"], stderr=subprocess.DEVNULL, check=False)
    if megabits is None:
        return
    # the bucket holds one packet of the largest size that leaves TCP, 64 kB: more would be sent at once after a pause
    rate = ["rate", f"{megabits}mbit", "burst", "72000", "limit", str(16 * 1024 * 1024)]
    subprocess.run(["tc", "qdisc", "add", "dev", DEVICE, "root", "tbf", *rate], check=True)


def sent() -> int:
    """Bytes that this namespace's eth0 has sent, Ethernet's and TCP's headers among them."""
    return int(Path(f"/sys/class/net/{DEVICE}/statistics/tx_bytes").read_text())


def run(command: Sequence[str], ranks: int) -> None:
    """The command as ``ranks`` processes, each in a namespace of its own; SystemExit with what the first bad one said.

    Every rank is told that it is alone on its node.
    """

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    started: list[subprocess.Popen[str]] = []
    try:
        with network(ranks) as names:
            try:
                for rank, name in enumerate(names):
                    own = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
                    own |= {"MASTER_ADDR": "10.77.0.1", "MASTER_PORT": PORT, "GLOO_SOCKET_IFNAME": DEVICE}
                    env = {**os.environ, "OMP_NUM_THREADS": "1", **{key: str(value) for key, value in own.items()}}
                    words = ["ip", "netns", "exec", name, *command]
                    started.append(subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL,
                                                    stderr=subprocess.PIPE, text=True))  # fmt: skip
                codes: list[int | None] = [None]
                while None in codes and not any(codes):
                    time.sleep(0.1)
                    codes = [process.poll() for process in started]
            finally:
                for process in started:
                    if process.poll() is None:
                        process.kill()
                said = [process.communicate()[1] for process in started]
        for process, words in zip(started, said, strict=True):
            if process.returncode not in (0, -signal.SIGKILL):
                raise SystemExit(words or f"a rank ended with {process.returncode}")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
