"""Kill all processes of one private cluster once standard input closes: ``python guard.py SLURM_CONF``.

The test process holds the other end of standard input, so the cluster ends with it, however it ends. A process belongs
to the cluster if its environment names the cluster's slurm.conf: daemons, step managers, batch shells and tasks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path


def cluster_processes(slurm_conf: str) -> list[int]:
    """Ids of the cluster's processes, without this one."""
    processes = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # the process has ended
            continue
        if f"SLURM_CONF={slurm_conf}".encode() in environment:
            processes.append(int(entry.name))
    return processes


def main() -> None:
    slurm_conf = sys.argv[1]
    sys.stdin.read()
    deadline = time.monotonic() + 20
    while (processes := cluster_processes(slurm_conf)) and time.monotonic() < deadline:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
