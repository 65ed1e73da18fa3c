"""Durable writes and checksums: a file or folder is complete and on disk, or it does not exist.

Use :func:`write_atomically` for a file that other processes may read at any time. Use :func:`write_durably` and
:class:`HashedFile` for the files of a folder that gets its final name last (:func:`partial_folder`).
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from brain_dist.common.locks import Busy, take_lock
from brain_dist.errors import UserError

_BLOCK = 1 << 20  # bytes read at a time


@contextmanager
def partial_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``out``, which is renamed to ``out`` on success and removed on failure.

    Folders that a killed process left beside ``out`` are removed first. A lock in the folder, which the kernel releases
    when its process ends, distinguishes them from a build that is still running.

    Raises:
        UserError: another process is writing ``out``.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 (resolve() would follow ``out`` if it is a link)
    out.parent.mkdir(parents=True, exist_ok=True)
    for old in out.parent.glob(f".{glob.escape(out.name)}.partial-*"):
        try:
            with take_lock(old / "lock"):
                shutil.rmtree(old)
        except Busy:
            raise UserError(f"another build is writing {out}; wait for it, or choose another folder") from None
    folder = out.parent / f".{out.name}.partial-{os.getpid()}"
    folder.mkdir()
    try:
        with take_lock(folder / "lock"):
            yield folder
            (folder / "lock").unlink()
            sync_folder(folder)
            folder.rename(out)
            sync_folder(out.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Wait until the names inside a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and wait until its bytes are on disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace a file: readers see the old or the new content, never a part of it. It is on disk on return.

    Raises:
        OSError: the disk is full or the folder is not writable. The old content is kept, nothing is left behind.
    """
    content = data.encode() if isinstance(data, str) else data
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write_durably(partial, content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


class HashedFile:
    """A file that is hashed while it is written, and is on disk when its ``with`` block ends without an error.

    Args:
        path: the file to write.
        keep: bytes at the start of an existing file to keep (and to hash); the rest is overwritten. With 0 the file is
            written from the start.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self._digest = hashlib.sha256()
        self._file = path.open("r+b" if keep else "wb")
        for start in range(0, keep, _BLOCK):
            self._digest.update(self._file.read(min(_BLOCK, keep - start)))

    def write(self, data: bytes) -> None:
        """Append bytes to the file and to the hash."""
        self._digest.update(data)
        self._file.write(data)

    def tell(self) -> int:
        """Position in bytes."""
        return self._file.tell()

    @property
    def sha256(self) -> str:
        """sha256 (hex) of the bytes so far, including the kept ones."""
        return self._digest.hexdigest()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._file.flush()
                os.fsync(self._file.fileno())


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """sha256 (hex) of ``data``."""
    return hashlib.sha256(data).hexdigest()
