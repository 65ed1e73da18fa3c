"""The processor cores that this process may use: affinity, control groups and SLURM each set a limit."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path, PurePosixPath


def cpu_cores() -> int:
    """Number of cores that this process may use, ≥ 1: the smallest of :func:`core_limits`."""
    return min(core_limits().values())


def core_limits(root: Path = Path("/")) -> dict[str, int]:
    """What limits the cores of this process → the number that it allows, ≥ 1.

    ``affinity`` is always there. ``cgroup quota`` is the CPU time that containers and systemd allow, in whole cores.
    ``SLURM`` is the share of this task, or of this job outside a step, which not every cluster enforces.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    limits = {"affinity": len(os.sched_getaffinity(0))}
    quota = _quota(root)
    if quota < math.inf:
        limits["cgroup quota"] = max(1, int(quota))
    in_step = "SLURM_STEP_NUM_TASKS" in os.environ
    allocated = os.environ.get("SLURM_CPUS_PER_TASK" if in_step else "SLURM_CPUS_ON_NODE", "")
    if allocated.isdecimal() and int(allocated):
        limits["SLURM"] = int(allocated)
    return limits


def _quota(root: Path) -> float:
    """Cores that the quotas of this process's control group, and of those around it, allow; infinite without one."""
    quotas = [math.inf]
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)  # version 2 has one line, without controllers
            if not controllers or "cpu" in controllers.split(","):
                # the mount may name the controllers of version 1 in another order; it then has the link ``cpu``
                for mount in (controllers, "cpu") if controllers else ("",):
                    # a container may see its group at the root of the mount, so that the first folders do not exist
                    for group in (PurePosixPath(path), *PurePosixPath(path).parents):
                        quotas.append(_quota_of(root / "sys/fs/cgroup" / mount / group.relative_to("/")))
    return min(quotas)


def _quota_of(group: Path) -> float:
    """The quota of one control group: ``cpu.max`` in version 2, two files in version 1."""
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError):  # ValueError: the quota is the word max
            quota, period = map(int, " ".join((group / name).read_text() for name in names).split())
            if quota > 0:  # -1 in version 1: none
                return quota / period
    return math.inf
