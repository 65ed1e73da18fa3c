"""Processes on networks of known bandwidth, on one machine.

Each rank has a network namespace; veth pairs and a bridge connect them, and :func:`limit_rate` limits ``eth0`` of a
namespace with tbf. Requires root. The network is removed at the end, also after an error, SIGINT, SIGTERM or SIGHUP.
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
PORT = 29511  # every port is free in a new namespace
# TCP payload (with time stamps) of a full Ethernet frame of 1514 bytes, which is what tbf counts
PAYLOAD = 1448 / 1514


def missing_requirement() -> str | None:
    """What is missing on this machine, or None."""
    if os.geteuid():
        return "needs root, to create network namespaces"
    missing = [name for name in ("ip", "tc") if not shutil.which(name)]
    return f"needs {' and '.join(missing)} of the package iproute2" if missing else None


@contextlib.contextmanager
def network(ranks: int) -> Iterator[list[str]]:
    """Create one namespace per rank, with eth0 at 10.77.0.(rank + 1), and one more with the bridge; yield the names."""
    names = [f"bd{os.getpid()}r{rank}" for rank in range(ranks)]
    bridge = f"bd{os.getpid()}s"
    try:
        _ip("netns", "add", bridge)
        _ip("-n", bridge, "link", "add", "br0", "type", "bridge")
        _ip("-n", bridge, "link", "set", "br0", "up")
        for rank, name in enumerate(names):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "add", DEVICE, "type", "veth", "peer", "name", f"p{rank}", "netns", bridge)
            _ip("-n", bridge, "link", "set", f"p{rank}", "master", "br0", "up")
            _ip("-n", name, "address", "add", f"10.77.0.{rank + 1}/24", "dev", DEVICE)
            for device in ("lo", DEVICE):
                _ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in [*names, bridge]:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def limit_rate(megabits: float | None) -> None:
    """Limit the sending rate of this namespace's eth0 [Mbit/s]; None removes the limit."""
    subprocess.run(["tc", "qdisc", "delete", "dev", DEVICE, "root"], stderr=subprocess.DEVNULL, check=False)
    if megabits is None:
        return
    # The bucket holds one of TCP's largest packets, 64 kB; a larger one would allow a burst after each pause
    rate = ["rate", f"{megabits}mbit", "burst", "72000", "limit", str(16 * 1024 * 1024)]
    subprocess.run(["tc", "qdisc", "add", "dev", DEVICE, "root", "tbf", *rate], check=True)


def bytes_sent() -> int:
    """Bytes that this namespace's eth0 has sent, including Ethernet and TCP headers."""
    return int(Path(f"/sys/class/net/{DEVICE}/statistics/tx_bytes").read_text())


def run(command: Sequence[str], ranks: int) -> None:
    """Run a command as ``ranks`` processes, each in its own namespace and as the only rank of its node.

    Raises:
        SystemExit: a rank failed, with its standard error; or a signal arrived.
    """

    def exit_on_signal(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signals = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    previous = {number: signal.signal(number, exit_on_signal) for number in signals}
    processes: list[subprocess.Popen[str]] = []
    try:
        with network(ranks) as names:
            try:
                for rank, name in enumerate(names):
                    processes.append(_start(command, rank, ranks, name))
                _wait(processes)
            finally:
                for process in processes:
                    if process.poll() is None:
                        process.kill()
                errors = [process.communicate()[1] for process in processes]
        for process, text in zip(processes, errors, strict=True):
            if process.returncode not in (0, -signal.SIGKILL):
                raise SystemExit(text or f"a rank ended with exit code {process.returncode}")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start(command: Sequence[str], rank: int, ranks: int, namespace: str) -> subprocess.Popen[str]:
    variables = {
        "RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "OMP_NUM_THREADS": 1,
        "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": PORT, "GLOO_SOCKET_IFNAME": DEVICE,
    }  # fmt: skip
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.Popen(["ip", "netns", "exec", namespace, *command], env=environment, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


def _wait(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Wait until all processes have ended or one has failed."""
    codes: list[int | None] = [None]
    while None in codes and not any(codes):
        time.sleep(0.1)
        codes = [process.poll() for process in processes]
