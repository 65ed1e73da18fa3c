"""Copy a complete shard folder to the node's own disk, once per node, checked against its manifest.

Every rank of a node calls :func:`stage`. A lock lets one of them copy while the others wait. The kernel releases the
lock when its process ends, so the process after a killed one continues the copy.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from brain_dist.common.files import durable_file, is_inside, sha256_bytes, sha256_file, sync_folder, write_durably
from brain_dist.common.locks import locked
from brain_dist.common.progress import show_progress
from brain_dist.errors import Fault, UserError
from brain_dist.store.index import INDEX
from brain_dist.store.lesions import MASKS
from brain_dist.store.manifest import MANIFEST, BuiltManifest, JoinedManifest, Manifest, parse_manifest
from brain_dist.store.remote import Remote

PATIENCE = 5.0  # seconds of waiting for another process before a message says so
OFF = "off"


@dataclass(frozen=True)
class _File:
    """A file to copy; ``size`` in bytes, None if the manifest does not state it."""

    name: str
    sha256: str
    size: int | None


@dataclass(frozen=True)
class _Copy:
    """A shard folder to copy.

    Attributes:
        origin: where it is read.
        folder: the local copy.
        files: its files without the manifest.
        manifest: content of the manifest.
        suffix: end of the names of files that are being copied.
    """

    origin: Remote
    folder: Path
    files: list[_File]
    manifest: bytes
    suffix: str = ".part"


def stage(source: str, cache_dir: str | None) -> Path:
    """Make a shard folder readable on this node's own disk.

    The copy is ``cache_dir``/NAME-VERSION/ (the first 12 digits of the dataset version), with index.parquet, the
    shards, the masks and, last, manifest.json. The sha256 of each file is compared while it is copied. A complete copy
    is used again after checking the index's sha256 and the other sizes; later damage is detected by each sample's
    crc32. The .idx files are not copied, as only DALI's own reader needs them. Copies of older versions stay.

    Args:
        source: complete shard folder: a path, or a URL for fsspec (``s3://…``, ``https://…``, ``file://…``).
        cache_dir: folder on the node's disk; ``~`` and environment variables (``$SLURM_TMPDIR``) are expanded. None
            stages into ``$SLURM_TMPDIR`` if that is set and otherwise reads in place; ``off`` always reads in place. A
            path in the cache is not copied again.

    Returns:
        The local folder.

    Raises:
        UserError: a URL without a cache, an unset variable, a source that is missing, incomplete or has unsafe names in
            its manifest, a cache that is not writable or too small.
        Fault: a file differs from the manifest twice, or the source fails while it is read.
    """
    cache = _cache_folder(cache_dir)
    is_url = "://" in source
    if cache is None:
        if is_url:
            raise UserError(f"{source} is a URL: set data.cache_dir (or --cache-dir) to a folder on this node's disk")
        return Path(source)
    if not is_url and is_inside(Path(source), cache):
        return Path(source)
    copy = _plan_copy(source, cache)
    if _is_complete(copy):
        return copy.folder
    lock = cache / f".{copy.folder.name}.lock"
    waiting = f"waiting for the process of this node that stages {copy.folder} (it holds {lock})"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(lock, patience=PATIENCE, on_wait=lambda: _print(waiting)) as is_held:
            if not is_held:  # every process copies for itself; each file gets its name when it is complete
                copy = replace(copy, suffix=f".{platform.node()}-{os.getpid()}.part")
            if not _is_complete(copy):  # another process may have copied it in the meantime
                _copy_missing(copy)
    except OSError as error:  # errors of the source are raised as UserError or Fault
        advice = "set data.cache_dir to a writable folder, or to off"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "free some space and start again to continue from here"
        raise UserError(
            f"data.cache_dir: {copy.folder} cannot be written ({error.strerror or error}); {advice}"
        ) from None
    return copy.folder


def _cache_folder(cache_dir: str | None) -> Path | None:
    """The folder to stage into; None to read in place."""
    text = cache_dir or os.environ.get("SLURM_TMPDIR") or OFF
    if text == OFF:
        return None
    if "://" in text:
        raise UserError(f"data.cache_dir={text} is a URL; set it to a folder on this node's disk")
    for braced, bare in re.findall(r"\$(?:\{(\w*)\}|(\w+))", text):
        if not os.environ.get(braced or bare):
            raise UserError(f"data.cache_dir={text}: the variable {braced or bare} is not set")
    text = os.path.expanduser(os.path.expandvars(text))  # noqa: PTH111 (`~NAME` of an unknown user stays as it is)
    return Path(os.path.abspath(text))  # noqa: PTH100 (resolve() would follow links)


def _plan_copy(source: str, cache: Path) -> _Copy:
    """Read the source's manifest and check that its file names are safe."""
    origin = Remote(source)
    absent = f"{origin.url} does not exist or is not a complete shard folder (no {MANIFEST})"
    data = b"".join(origin.blocks(MANIFEST, 0, absent=absent)[1])
    place = f"{origin.url}: {MANIFEST}"
    manifest = parse_manifest(data, place)
    if isinstance(manifest, JoinedManifest):
        raise UserError(f"{origin.url} joins other shard folders, which are staged one by one; set its local path")
    files = _files_of(manifest, place)
    return _Copy(origin, cache / f"{manifest.name}-{sha256_bytes(data)[:12]}", files, data)


def _files_of(manifest: Manifest, place: str) -> list[_File]:
    """The files of a built folder without the manifest. Their names become paths, so an unsafe one is an error."""
    advice = "copy or build the shard folder again"
    files = [_File(INDEX, manifest.index_sha256, None)]
    files += [_File(entry.name, entry.sha256, entry.size) for entry in manifest.shards]
    tars = files[1:]
    if isinstance(manifest, BuiltManifest) and manifest.masks is not None:
        files.append(_File(MASKS, manifest.masks.sha256, manifest.masks.size))
    for file in files:
        if not re.fullmatch("[0-9a-f]{64}", file.sha256) or (file.size or 0) < 0:
            raise UserError(f"{place} states an impossible sha256 or size of {file.name!r}; {advice}")
    for name, pattern in [(manifest.name, r"\w[\w-]*"), *((file.name, r"\w[\w.-]*\.tar") for file in tars)]:
        if not re.fullmatch(pattern, name):
            raise UserError(f"{place} contains the name {name!r}, which is not a plain file name; {advice}")
    if len({file.name for file in files}) < len(files):
        raise UserError(f"{place} lists a shard twice; {advice}")
    return files


def _is_complete(copy: _Copy) -> bool:
    try:
        content = (copy.folder / MANIFEST).read_bytes()
        return content == copy.manifest and all(_is_copied(copy.folder, file) for file in copy.files)
    except OSError:
        return False


def _is_copied(folder: Path, file: _File) -> bool:
    """Whether a file is complete. It gets its name after its sha256 was compared, so its size is enough."""
    path = folder / file.name
    if file.size is not None:
        return _size(path) == file.size
    return path.is_file() and sha256_file(path) == file.sha256


def _size(path: Path) -> int:
    """Bytes of a file, -1 if it does not exist."""
    return path.stat().st_size if path.is_file() else -1


def _copy_missing(copy: _Copy) -> None:
    """Copy the missing files and, last, the manifest."""
    folder, started = copy.folder, time.monotonic()
    folder.mkdir(exist_ok=True)
    missing = [file for file in copy.files if not _is_copied(folder, file)]
    needed = sum((file.size or 0) - max(_size(_part(copy, file.name)), 0) for file in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"data.cache_dir: {folder.parent} has {free:,} bytes free, {copy.origin.url} needs {needed:,} more;"
            " free some space, set data.cache_dir to a larger disk, or to off"
        )
    copied = 0
    with show_progress("bytes") as progress:

        def count(size: int) -> None:
            nonlocal copied
            copied += size
            progress(f"staging {folder.name}", copied, needed)

        for file in missing:
            _copy_file(copy, file, count)
    sync_folder(folder)
    write_durably(_part(copy, MANIFEST), copy.manifest)
    _part(copy, MANIFEST).rename(folder / MANIFEST)
    sync_folder(folder)
    seconds = time.monotonic() - started
    kept = sum(_size(folder / file.name) for file in copy.files) - copied
    note = f"; {kept:,} bytes were already copied" if kept > 0 else ""
    rate = copied / 1e6 / max(seconds, 1e-9)
    _print(f"staged {copy.origin.url} into {folder}: {copied:,} bytes in {seconds:.1f} s ({rate:.0f} MB/s){note}")


def _part(copy: _Copy, name: str) -> Path:
    """Path of a file while it is being copied."""
    return copy.folder / f"{name}{copy.suffix}"


def _copy_file(copy: _Copy, file: _File, count: Callable[[int], None]) -> None:
    """Copy a file from where it stopped; if the result differs from the manifest, copy it once more from the start."""
    part = _part(copy, file.name)
    absent = f"{copy.origin.url} lacks {file.name}, which its {MANIFEST} lists; copy or build it again"
    done = max(_size(part), 0)
    for wanted in (done if file.size is None or done <= file.size else 0, 0):
        start, blocks = copy.origin.blocks(file.name, wanted, absent=absent)
        with durable_file(part, "ab" if start else "wb") as output:
            for block in blocks:
                output.write(block)
                count(len(block))
        sha256 = sha256_file(part)
        if sha256 == file.sha256:
            part.rename(copy.folder / file.name)
            return
    part.unlink()
    raise Fault(
        f"{copy.origin.url}: {file.name} is damaged: its sha256 is {sha256}, {MANIFEST} says {file.sha256}; copy or"
        " build that folder again"
    )


def _print(text: str) -> None:
    print(f"brain-dist: {text}", file=sys.stderr, flush=True)
