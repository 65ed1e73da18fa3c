"""Memory and CPU time of a process and all its descendants, read from /proc."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from brain_dist.errors import Fault

INTERVAL = 0.05  # seconds between two samples


@dataclass(frozen=True)
class Usage:
    """What a process and its descendants used.

    Processes that live for less than two samples (tools that a package starts briefly) are left out of the memory.

    Attributes:
        peak: Peak resident memory [bytes] by process, including pages of mapped files, which the kernel can reclaim.
        peak_anonymous: Peak memory [bytes] by process without mapped files, as the maximum over the samples.
        cpu_seconds: CPU time of all processes.
    """

    peak: dict[int, int]
    peak_anonymous: dict[int, int]
    cpu_seconds: float


def wait_and_watch(process: subprocess.Popen[bytes]) -> Usage:
    """Wait for a process and sample its memory and that of its descendants."""
    peak: dict[int, int] = {}
    anonymous: dict[int, int] = {}
    samples: Counter[int] = Counter()
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            process.returncode = os.waitstatus_to_exitcode(status)
            kept = [pid for pid in peak if samples[pid] > 1]
            return Usage(
                {pid: peak[pid] for pid in kept},
                {pid: anonymous[pid] for pid in kept},
                usage.ru_utime + usage.ru_stime,
            )
        for pid in family(process.pid):
            memory = _memory(pid)
            if "VmHWM" in memory:  # the kernel's own peak, since the last exec
                peak[pid] = memory["VmHWM"]
                anonymous[pid] = max(anonymous.get(pid, 0), memory.get("RssAnon", 0))
                samples[pid] += 1
        time.sleep(INTERVAL)


def _memory(pid: int) -> dict[str, int]:
    """Memory fields of /proc/PID/status [bytes]; empty if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: 1024 * int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)
            if name in ("VmHWM", "RssAnon")}  # fmt: skip


def family(pid: int) -> list[int]:
    """A process and all its living descendants."""
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return [pid, *(member for child in children for member in family(child))]


def machine_cpu_seconds() -> float:
    """CPU time of all processes of this machine since it started."""
    user, nice, system, _, _, irq, soft = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> float:
    """CPU time of this process, its living descendants, and the children that they waited for."""
    return time.process_time() + sum(os.times()[2:4]) + descendants_cpu_seconds()


def descendants_cpu_seconds() -> float:
    """CPU time of this process's living descendants and of the children that they waited for."""
    ticks = 0
    for pid in family(os.getpid())[1:]:
        with contextlib.suppress(OSError):  # it has ended
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def wait_until_idle(limit: float = 120) -> tuple[float, float]:
    """Wait until this process and its descendants have used no CPU time for a second.

    Args:
        limit: Seconds after which they are said to be busy for good.

    Returns:
        When that second began, and the CPU seconds that they had used by then. The CPU time of waiting itself does not
        count: on a slow machine it alone exceeds the resolution in each second.

    Raises:
        Fault: they are never idle, for example because OpenMP's threads spin.
    """
    own, begin = time.thread_time(), time.perf_counter()
    used, since = cpu_seconds(), begin
    while time.perf_counter() - since < 1:
        if time.perf_counter() - begin > limit:
            raise Fault(f"the process has not been idle for {limit:.0f} s; is OMP_WAIT_POLICY=ACTIVE set?")
        time.sleep(0.05)
        now = cpu_seconds() - (time.thread_time() - own)
        if now > used + 0.011:  # more than the resolution of the workers' time
            used, since = now, time.perf_counter()
    return since, used
