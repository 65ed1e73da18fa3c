"""Files and folders that are complete and on disk, or not there.

:func:`write_atomically` for a file that readers may open at any moment; :func:`write_durably` for one of several files
in a folder that gets its name last (:func:`partial_folder`).
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brain_dist.errors import UserError


@contextmanager
def partial_folder(out: Path) -> Iterator[Path]:
    """Give a folder beside ``out`` that becomes ``out`` when the block ends well, and is removed when it does not.

    What a killed process left beside ``out`` is removed first; a lock, which the kernel drops with its process, tells
    it from a build that is still running (a :class:`UserError`).
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 (resolve() would follow a link that ``out`` is)
    out.parent.mkdir(parents=True, exist_ok=True)
    for old in out.parent.glob(f".{glob.escape(out.name)}.partial-*"):
        with (old / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another build is writing {out} at this moment") from None
            shutil.rmtree(old)
    folder = out.parent / f".{out.name}.partial-{os.getpid()}"
    folder.mkdir()
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
            (folder / "lock").unlink()
            sync_folder(folder)
            folder.rename(out)
            sync_folder(out.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make new names inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write ``data`` and wait until it is on disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write ``path`` so that a reader sees the old content or the new one, never a part; on disk on return.

    Raises:
        OSError: the disk is full or the folder can't be written to; the old content stays and nothing is left behind.
    """
    content = data.encode() if isinstance(data, str) else data
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write_durably(partial, content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
