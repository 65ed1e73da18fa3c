"""Durable writes and checksums: a file or folder is complete and on disk, or it does not exist.

Use :func:`write_atomically` for a file that other processes may read at any time. Use :func:`write_durably` and
:func:`durable_file` for the files of a folder that gets its final name last (:func:`partial_folder`).
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from brain_dist.common.locks import Busy, take_lock
from brain_dist.errors import Fault, UserError


@contextmanager
def partial_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``out``, which is renamed to ``out`` on success and removed on failure.

    Folders that a killed process left beside ``out`` are removed first. A lock in the folder, which the kernel releases
    when its process ends, distinguishes them from those of running processes. On a file system without locks they stay.

    Raises:
        UserError: ``out`` cannot be replaced (:func:`check_place`), another process is writing it or has just written
            it, or files cannot be written.
        Fault: the caller's work failed on a file outside the folder, such as one that it reads.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 (resolve() would follow ``out`` if it is a link)
    check_place(out)
    name = secrets.token_hex(4)
    folder, unlocked = (out.with_name(f".{out.name}.{kind}-{name}") for kind in ("partial", "unlocked"))
    try:
        unlocked.mkdir(parents=True)
        with take_lock(unlocked / "lock", required=False):
            unlocked.rename(folder)  # other processes never see it without its lock
            for other in out.parent.glob(f".{glob.escape(out.name)}.partial-*"):
                if other != folder:
                    _remove_abandoned(other, out)
            try:
                yield folder
            except OSError as error:
                if _is_outside(error.filename, folder, out):
                    raise Fault(f"{os.fsdecode(error.filename)}: {error.strerror}; {out} was not written") from error
                raise
            (folder / "lock").unlink()
            sync_folder(folder)
            folder.rename(out)
            sync_folder(out.parent)
    except OSError as error:
        reason, advice = error.strerror or str(error), "free some space or choose another folder"
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and out.exists():
            reason, advice = "another process has just written it", "choose another folder"
        raise UserError(f"{out} cannot be written ({reason}); {advice}") from None
    finally:
        shutil.rmtree(unlocked, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def check_place(out: Path) -> None:
    """Check, before long work, that a folder beside ``out`` can take its place by a rename.

    Raises:
        UserError: ``out`` is a symbolic link, a mount point, or the current folder or one around it.
    """
    reason = None
    if out.is_symlink():
        reason = f"a symbolic link; give the folder that it leads to ({out.readlink()}), or remove it"
    elif os.path.ismount(out):
        reason = "a mount point, which a complete folder cannot replace; choose a folder inside it"
    elif Path.cwd().is_relative_to(os.path.abspath(out)):  # noqa: PTH100
        reason = "the current folder or contains it; start the command elsewhere, or choose another folder"
    if reason is not None:
        raise UserError(f"{out} is {reason}")


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or in it, after following links; circular ones do not matter."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _is_outside(name: object, *folders: Path) -> bool:
    """Whether an error's file, a path or something else if it names none, is in none of the absolute folders."""
    if not isinstance(name, (str, bytes, os.PathLike)):
        return False
    path = Path(os.path.abspath(os.fsdecode(name)))  # noqa: PTH100 (a link in a folder is in it)
    return not any(path.is_relative_to(folder) for folder in folders)


def _remove_abandoned(folder: Path, out: Path) -> None:
    try:
        with take_lock(folder / "lock"):
            shutil.rmtree(folder)
    except Busy:
        raise UserError(f"another process is writing {out}; wait for it, or choose another folder") from None
    except OSError:
        pass  # it is gone, or the file system has no locks and its process may be running


def sync_folder(folder: Path) -> None:
    """Wait until the names inside a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Wait until the bytes of a file are on disk; its folder holds its name (:func:`sync_folder`)."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def durable_file(path: Path, mode: Literal["wb", "xb", "ab"] = "wb") -> Iterator[BinaryIO]:
    """Open a file for writing; its bytes are on disk when the ``with`` block ends without an error."""
    with path.open(mode) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and wait until its bytes are on disk."""
    with durable_file(path) as file:
        file.write(data)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace a file: readers see the old or the new content, never a part of it. It is on disk on return.

    Raises:
        OSError: the disk is full or the folder is not writable. The old content is kept, nothing is left behind.
    """
    write_together({path: data})


def write_together(contents: Mapping[Path, bytes | str]) -> None:
    """:func:`write_atomically` for several files: unless all of them can be written, none is replaced.

    A symbolic link at one of the paths is replaced, not followed.
    """
    partials = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in contents}
    try:
        for path, data in contents.items():
            partials[path].unlink(missing_ok=True)  # of a process that was killed, or a link
            with durable_file(partials[path], "xb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
        for path, partial in partials.items():
            partial.replace(path)
    finally:
        for partial in partials.values():
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    for folder in {path.parent for path in contents}:
        sync_folder(folder)


def check_writable(folder: Path, advice: str) -> None:
    """Check, before long work, that files can be written to ``folder`` or, if it does not exist, beside it.

    Raises:
        UserError: no permission, a read-only file system, or less space than 64 KB; the message ends with ``advice``.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(1 << 16))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}); {advice}") from None


@contextmanager
def writing(place: Path, advice: str = "free some space") -> Iterator[None]:
    """Turn an error of the ``with`` block, which writes ``place``, into a :class:`Fault` that ends with ``advice``."""
    try:
        yield
    except OSError as error:
        raise Fault(f"{place} cannot be written ({error.strerror or error}); {advice}") from None


def crc32_file(path: Path) -> int | None:
    """CRC-32 of a file, None if it cannot be read; faster than sha256, for changes that nobody hides."""
    checksum = 0
    try:
        if not path.is_file():
            return None  # opening a named pipe would wait for its writer
        with path.open("rb") as file:
            while data := file.read(1 << 20):
                checksum = zlib.crc32(data, checksum)
    except OSError:
        return None
    return checksum


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """sha256 (hex) of ``data``."""
    return hashlib.sha256(data).hexdigest()
