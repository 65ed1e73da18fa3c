"""What a process and all its descendants use: memory and CPU time, read from /proc."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

TICK = 0.05  # seconds between two looks


def watch(process: subprocess.Popen[bytes]) -> tuple[dict[int, int], dict[int, int], float]:
    """Wait for a process, and tell what it and its descendants used.

    Returns:
        Peak memory in bytes by process, pages of mapped files among it, which the kernel takes back when it needs room;
        the same without those, as the highest of many looks; CPU seconds of all processes.

    Processes that live for less than two looks (tools that a package asks something) are left out.
    """
    peaks: dict[int, int] = {}
    own: dict[int, int] = {}
    looks: dict[int, int] = {}
    while True:
        done, status, usage = os.wait4(process.pid, os.WNOHANG)
        if done:
            process.returncode = os.waitstatus_to_exitcode(status)
            kept = {pid: peak for pid, peak in peaks.items() if looks[pid] > 1}
            return kept, {pid: own[pid] for pid in kept}, usage.ru_utime + usage.ru_stime
        for pid in family(process.pid):
            try:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            except OSError:
                continue
            for line in lines:
                if line.startswith("VmHWM:"):  # of the running program: what was there before an exec is forgotten
                    peaks[pid] = 1024 * int(line.split()[1])
                    looks[pid] = looks.get(pid, 0) + 1
                elif line.startswith("RssAnon:"):
                    own[pid] = max(own.get(pid, 0), 1024 * int(line.split()[1]))
        time.sleep(TICK)


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        children = []
    return [pid, *(member for child in children for member in family(child))]


def busy() -> float:
    """CPU seconds that all processes of this machine have used."""
    user, nice, system, _, _, irq, soft = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def cpu() -> float:
    """CPU seconds of this process, of those that it waited for, and of those that still run."""
    return sum(os.times()[:4]) + running()


def running() -> float:
    """CPU seconds of this process's living descendants, and of those that they waited for."""
    ticks = 0
    for pid in family(os.getpid())[1:]:
        ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")
