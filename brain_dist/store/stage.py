"""Copy a finished shard folder to the node's own disk, once a node, checked against its manifest.

Every rank of a node calls :func:`stage`; a lock makes one of them copy while the others wait. The kernel drops the lock
with its process, so whoever comes after a killed one goes on where that one stopped.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brain_dist.common.files import sha256_file, sync_folder, write_durably
from brain_dist.errors import Fault, UserError
from brain_dist.store.index import INDEX
from brain_dist.store.manifest import FORMAT, MANIFEST
from brain_dist.store.remote import BLOCK, Remote

PATIENCE = 5.0  # seconds of waiting for another process before a line says so
OFF = "off"


def stage(source: str, cache_dir: str | None) -> Path:
    """Make ``source`` readable on this node's own disk; returns the local folder.

    The copy is ``cache_dir``/<name>-<12 digits of the dataset version>/ with index.parquet, the shards and, last,
    manifest.json; each file's sha256 is compared as it is copied. A complete copy is used again after a look at the
    index's sha256 and the shards' sizes; what happens to its bytes later, loaders notice by each sample's crc32. The
    .idx files are left out: only DALI's own reader wants them. Copies of older versions stay until somebody removes
    them.

    Args:
        source: finished shard folder: a path, or a URL that fsspec knows (``s3://…``, ``https://…``, ``file://…``).
        cache_dir: folder on the node's disk; environment variables in it are expanded (``$SLURM_TMPDIR``). None stages
            into ``$SLURM_TMPDIR`` where that is set and else reads in place; ``off`` always reads in place. A path
            that is read in place, or that lies inside the cache, is returned as it is.

    Raises:
        UserError: a URL without a cache, an unset variable, a source that is absent, unfinished or has bad names in
            its manifest, a cache that cannot be written or is too small.
        Fault: a file whose bytes are not the manifest's, twice; a source that fails while it is read.
    """
    cache = _cache(cache_dir)
    is_url = "://" in source
    if cache is None:
        if is_url:
            raise UserError(f"{source} is a URL: set data.cache_dir to a folder on this node's disk to copy it to")
        return Path(source)
    if not is_url and Path(source).resolve().is_relative_to(cache.resolve()):
        return Path(source)
    origin = Remote(source)
    unfinished = f"{origin.url} is not there or is no finished shard folder (no {MANIFEST})"
    text = b"".join(origin.blocks(MANIFEST, 0, absent=unfinished)[1])
    name, files = _listed(text, source)
    folder = cache / f"{name}-{hashlib.sha256(text).hexdigest()[:12]}"
    if _complete(folder, files, text):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache / f".{folder.name}.lock", folder):
            if not _complete(folder, files, text):  # else another process made it in the meantime
                _fill(origin, folder, files, text)
    except OSError as error:  # those of the source are told apart where they arise
        mend = "set data.cache_dir to a folder that can be written, or to off"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            mend = "free some space and start again, which goes on from here"
        raise UserError(f"data.cache_dir: {folder} cannot be written ({error.strerror or error}); {mend}") from None
    return folder


@dataclass(frozen=True)
class _File:
    """A file to copy; ``size`` in bytes, None where the manifest does not say it."""

    name: str
    sha256: str
    size: int | None


def _cache(cache_dir: str | None) -> Path | None:
    """The folder to stage into, None to read in place."""
    text = cache_dir or os.environ.get("SLURM_TMPDIR") or OFF
    if text == OFF:
        return None
    if "://" in text:
        raise UserError(f"data.cache_dir={text} is a URL; give a folder on this node's disk")
    for braced, bare in re.findall(r"\$(?:\{(\w*)\}|(\w+))", text):
        if not os.environ.get(braced or bare):
            raise UserError(f"data.cache_dir={text}: the variable {braced or bare} is not set; set it or name a folder")
    return Path(os.path.abspath(os.path.expandvars(text)))  # noqa: PTH100 (resolve() would follow links)


def _listed(text: bytes, url: str) -> tuple[str, list[_File]]:
    """(the dataset's name, its files but the manifest) by a manifest that nobody has checked yet."""
    where = f"{url}: {MANIFEST}"
    try:
        manifest = json.loads(text)
    except ValueError:
        raise UserError(f"{where} is not valid JSON; copy or build the shard folder again") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise UserError(f"{where} has format version {found!r}, this program reads {FORMAT}; build it again")
    if "sources" in manifest:
        raise UserError(f"{url} joins other shard folders, which are staged one by one; give its local path")
    try:
        name = manifest["name"]
        files = [_File(INDEX, manifest["index_sha256"], None)]
        files += [_File(entry["name"], entry["sha256"], entry["size"]) for entry in manifest["shards"]]
        good = all(re.fullmatch("[0-9a-f]{64}", f.sha256) for f in files) and all(f.size >= 0 for f in files[1:])  # type: ignore[operator]
    except (KeyError, TypeError):
        good = False
    if not good:
        raise UserError(f"{where} does not list its files; copy or build the shard folder again")
    # They become paths: nothing that leaves the folder, hides in it or takes another file's place
    for word, pattern in [(name, r"\w[\w-]*"), *((f.name, r"\w[\w.-]*\.tar") for f in files[1:])]:
        if not isinstance(word, str) or not re.fullmatch(pattern, word):
            raise UserError(f"{where} names {word!r}, which is no plain name; build the shard folder again")
    if len({f.name for f in files}) < len(files):
        raise UserError(f"{where} names a shard twice; build the shard folder again")
    return name, files


def _complete(folder: Path, files: list[_File], text: bytes) -> bool:
    try:
        return (folder / MANIFEST).read_bytes() == text and all(_whole(folder / file.name, file) for file in files)
    except OSError:
        return False


def _whole(path: Path, file: _File) -> bool:
    """Is the file there? It got its name after its sha256 was compared, so its size says enough."""
    return _size(path) == file.size if file.size is not None else path.is_file() and sha256_file(path) == file.sha256


def _size(path: Path) -> int:
    """Bytes of a file, -1 where there is none."""
    return path.stat().st_size if path.is_file() else -1


@contextmanager
def _alone(lock: Path, folder: Path) -> Iterator[None]:
    """Hold the lock; the file stays, since another process may be waiting on it."""
    with lock.open("a") as file:
        limit = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= limit:
                    _say(f"waiting for the process of this node that stages {folder} (it holds {lock})")
                    fcntl.flock(file, fcntl.LOCK_EX)
                    break
                time.sleep(0.1)
        yield


def _fill(origin: Remote, folder: Path, files: list[_File], text: bytes) -> None:
    """Copy what lacks, the manifest last; the caller holds the lock."""
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # of a copy that something was taken from since
    lacking = [file for file in files if not _whole(folder / file.name, file)]
    for file in lacking:
        (folder / file.name).unlink(missing_ok=True)
    needed = sum((file.size or 0) - max(_size(_part(folder, file.name)), 0) for file in lacking)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"data.cache_dir: {folder.parent} has {free:,} bytes free, {origin.url} needs {needed:,} more; free some"
            " space, set data.cache_dir to a larger disk, or to off"
        )
    began, copied = time.monotonic(), 0
    with _bar(f"staging {folder.name}", needed) as advance:

        def tell(count: int) -> None:
            nonlocal copied
            copied += count
            advance(count)

        for file in lacking:
            _copy(origin, file, folder, tell)
    sync_folder(folder)
    part = _part(folder, MANIFEST)
    write_durably(part, text)
    part.rename(folder / MANIFEST)
    sync_folder(folder)
    seconds = time.monotonic() - began
    kept = sum(_size(folder / file.name) for file in files) - copied
    before = f"; {kept:,} bytes were there from before" if kept > 0 else ""
    rate = copied / 1e6 / max(seconds, 1e-9)
    _say(f"staged {origin.url} into {folder}: {copied:,} bytes in {seconds:.1f} s ({rate:.0f} MB/s){before}")


def _part(folder: Path, name: str) -> Path:
    return folder / f"{name}.part"


def _copy(origin: Remote, file: _File, folder: Path, tell: Callable[[int], None]) -> None:
    """Copy one file from where it stopped; where that gives other bytes than the manifest's, once more from zero."""
    part = _part(folder, file.name)
    there = max(_size(part), 0)
    for start in (there if file.size is None or there <= file.size else 0, 0):
        found = _append(origin, file, part, start, tell)
        if found == file.sha256:
            part.rename(folder / file.name)
            return
    part.unlink()
    raise Fault(
        f"{origin.url}: {file.name} is damaged: its sha256 is {found}, {MANIFEST} says {file.sha256}; copy or build"
        " that folder again"
    )


def _append(origin: Remote, file: _File, part: Path, start: int, tell: Callable[[int], None]) -> str:
    """Read from ``start`` on into ``part``, which is on disk on return; gives the sha256 of all of it."""
    absent = f"{origin.url} lacks {file.name}, which its {MANIFEST} names; copy or build it again"
    start, blocks = origin.blocks(file.name, start, absent=absent)
    digest = hashlib.sha256()
    with part.open("r+b" if start else "w+b", buffering=0) as out:
        for block in iter(lambda: out.read(min(BLOCK, start - out.tell())), b""):
            digest.update(block)
        for block in blocks:
            digest.update(block)
            rest = memoryview(block)
            while rest:  # a disk that fills up takes the first half of a block and says so at the second
                rest = rest[out.write(rest) :]
            tell(len(block))
        os.fsync(out.fileno())
    return digest.hexdigest()


def _say(text: str) -> None:
    print(f"brain-dist: {text}", file=sys.stderr, flush=True)


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], Any]]:
    """Gives advance(bytes): a bar on stderr where that is a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    shown = console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not shown, transient=True) as bars:
        task = bars.add_task(title, total=total)
        yield lambda count: bars.advance(task, count)
