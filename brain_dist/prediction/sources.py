"""Which files a prediction reads: files, folders, patterns, and members of tar and zip archives."""

from __future__ import annotations

import glob
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from brain_dist.collection.decoding import BadImage
from brain_dist.collection.dicom import is_dicom
from brain_dist.collection.slicefiles import SUFFIXES
from brain_dist.common.text import printable

ARRAY = ".npy"
IMAGE_SUFFIXES = (*(suffix for suffixes in SUFFIXES.values() for suffix in suffixes), ARRAY)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
ARCHIVE_SUFFIXES = (*TAR_SUFFIXES, ".zip")
MAX_BYTES = 2**32  # of a file; a larger one is not a slice or a volume of slices
_archive_lock = threading.Lock()  # the position in an archive is shared


@dataclass(frozen=True)
class Source:
    """A file to predict.

    Attributes:
        path: the file, or the archive that it is in.
        member: its name in the archive; None if it is a file of its own.
        problem: why it cannot be read; empty if nothing is wrong so far.
    """

    path: str
    member: str | None = None
    problem: str = ""

    @property
    def name(self) -> str:
        """What the table calls it: its path, or that of the archive, a slash, and the member's name."""
        return printable(self.path if self.member is None else f"{self.path}/{self.member}")

    def read(self) -> bytes:
        """The bytes of the file.

        Raises:
            BadImage: it cannot be read; says why.
        """
        if self.problem:
            raise BadImage(self.problem)
        try:
            if self.member is not None:
                with _archive_lock:
                    return _read_member(self.path, self.member)
            if not os.path.isfile(self.path):  # noqa: PTH113 (False in a folder that cannot be read)
                raise BadImage("is not a file, or is a broken link")
            if os.path.getsize(self.path) > MAX_BYTES:  # noqa: PTH202
                raise BadImage(f"has more than {MAX_BYTES:,} bytes")
            return Path(self.path).read_bytes()
        except OSError as error:
            raise BadImage(f"cannot be read ({error.strerror or error})") from None


def find_sources(words: Iterable[str]) -> list[Source]:
    """The files that paths, folders, patterns and archives mean, each once, in a fixed order.

    Folders and archives are searched for images by their suffixes, and for DICOM files without one by their content.
    Hidden files are left out. Whatever cannot be found is a source with a problem.
    """
    sources = [source for word in words for source in _of_word(word)]
    return list(dict.fromkeys(sources))


def _of_word(word: str) -> list[Source]:
    path = Path(word)
    if not os.path.lexists(word) and glob.has_magic(word):
        matches = sorted(glob.glob(word, recursive=True))  # noqa: PTH207 (a whole path, absolute or not)
        return [source for match in matches for source in _of_path(Path(match))] or [
            Source(word, problem="no file matches this pattern")
        ]
    return _of_path(path)


def _of_path(path: Path) -> list[Source]:
    try:
        if path.is_dir():
            return _of_folder(path) or [Source(str(path), problem="is a folder without images")]
    except OSError as error:
        return [Source(str(path), problem=f"cannot be read ({error.strerror})")]
    if not os.path.lexists(path):
        return [Source(str(path), problem="does not exist")]
    if path.name.lower().endswith(ARCHIVE_SUFFIXES):
        return _of_archive(str(path))
    return [Source(str(path))]


def _of_folder(folder: Path) -> list[Source]:
    sources = []
    unreadable: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in sorted(names):
            path = Path(place, name)
            if _is_hidden(name):
                continue
            if name.lower().endswith(ARCHIVE_SUFFIXES):
                sources += _of_archive(str(path))
            elif name.lower().endswith(IMAGE_SUFFIXES) or (
                (not path.suffix or path.suffix[1:].isdigit()) and is_dicom(path)
            ):
                sources.append(Source(str(path)))
    sources += [Source(str(error.filename), problem=f"cannot be read ({error.strerror})") for error in unreadable]
    return sources


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _of_archive(path: str) -> list[Source]:
    """The images in an archive, in its order."""
    try:
        names = _members(path)
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        return [Source(path, problem=f"is not a readable archive ({error})")]
    wanted = [name for name in names if _is_wanted(path, name)]
    return [Source(path, name) for name in wanted] or [Source(path, problem="is an archive without images")]


def _is_wanted(archive: str, name: str) -> bool:
    parts = Path(name).parts
    if any(_is_hidden(part) for part in parts):
        return False
    if name.lower().endswith(IMAGE_SUFFIXES):
        return True
    if Path(name).suffix or Path(name).name.upper() == "DICOMDIR":
        return False
    try:
        with _archive_lock:
            return _read_member(archive, name, 132)[128:] == b"DICM"
    except (BadImage, OSError):
        return False


def _archive(path: str) -> tarfile.TarFile | zipfile.ZipFile:
    """An archive, opened again if another file has its path since."""
    status = os.stat(path)  # noqa: PTH116
    return _open_archive(path, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=4)
def _open_archive(path: str, _version: tuple[int, ...]) -> tarfile.TarFile | zipfile.ZipFile:
    return tarfile.open(path) if path.lower().endswith(TAR_SUFFIXES) else zipfile.ZipFile(path)


def _members(path: str) -> Sequence[str]:
    archive = _archive(path)
    if isinstance(archive, zipfile.ZipFile):
        return [info.filename for info in archive.infolist() if not info.is_dir()]
    return [info.name for info in archive.getmembers() if info.isfile()]


def _read_member(path: str, member: str, count: int = MAX_BYTES) -> bytes:
    """At most ``count`` bytes of a member.

    Raises:
        BadImage: the archive is damaged there, or the member is encrypted or too large.
    """
    try:
        archive = _archive(path)
        stream: IO[bytes] | None
        stream = archive.open(member) if isinstance(archive, zipfile.ZipFile) else archive.extractfile(member)
        if stream is None:
            raise BadImage("is not a file in the archive")
        with stream:
            data = stream.read(count)
            if count == MAX_BYTES and stream.read(1):
                raise BadImage(f"has more than {MAX_BYTES:,} bytes")
            return data
    except BadImage:
        raise
    except Exception as error:  # whatever a damaged archive raises: zlib.error, EOFError, RuntimeError (encrypted), …
        raise BadImage(f"cannot be read from the archive ({error or type(error).__name__})") from None
