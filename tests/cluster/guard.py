"""Waits until standard input closes, however its holder ended, then kills every process of one private cluster.

Those are the ones whose environment names the cluster's slurm.conf: daemons, step managers, batch shells and tasks.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def members(conf: str) -> list[int]:
    """Process ids, this one left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SLURM_CONF={conf}".encode() in environment:
            found.append(int(entry.name))
    return found


def main() -> None:
    conf = sys.argv[1]
    sys.stdin.read()
    limit = time.monotonic() + 20
    while (left := members(conf)) and time.monotonic() < limit:
        for process in left:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)


if __name__ == "__main__":
    main()
