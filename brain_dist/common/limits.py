"""Limits of this process that the kernel keeps."""

from __future__ import annotations

import resource

_OPEN_FILES = 65_536


def forbid_core_dumps() -> None:
    """Keep a crash from writing the memory of this process, and so what it works on, to the disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def allow_many_connections() -> None:
    """Raise the number of files, and so of connections, that this process may have open: the usual 1,024 are few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
