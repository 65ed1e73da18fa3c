"""Received images on disk until they are evaluated. One whose storage was confirmed to its sender survives a crash.

Each series of an association is a folder below ``incoming``. It becomes a job when the association ends, or when no
image of the series has come for :data:`SETTLE` seconds. After a restart every folder that is still there is a job.
"""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from brain_dist.common.files import write_atomically
from brain_dist.dicomnode.header import Header

SETTLE = 30.0  # seconds after which a series without a new image is complete, though its association stays open
REFUSED, ATTEMPTS = "refused", "attempts"  # files of a job with a number each
MAX_ATTEMPTS = 2  # evaluations of a job that ended the process


@dataclass
class Job:
    """The received images of a series.

    Attributes:
        folder: where they are, ``*.dcm``.
        images: their number.
        refused: how many more images of the series were refused.
    """

    folder: Path
    images: int = 0
    refused: int = 0

    @property
    def paths(self) -> list[Path]:
        """The images in the order in which they came."""
        return sorted(self.folder.glob("*.dcm"))


class _Open(Job):
    """A series that is being received."""

    last: float = 0.0  # time of its newest image
    writing: int = 0  # images that are being written


class Inbox:
    """A bounded number of received images, by series; safe for threads.

    Attributes:
        jobs: series that are complete, in their order; None is the end.
    """

    def __init__(self, folder: Path, capacity: int) -> None:
        """Open the folder, which may have jobs of an earlier process.

        Args:
            folder: the node's folder.
            capacity: images that may wait.
        """
        self.jobs: Queue[Job | None] = Queue()
        self._incoming, self._failed, self._capacity = folder / "incoming", folder / "failed", capacity
        self._open: dict[tuple[int, tuple[str, str]], _Open] = {}
        self._lock = threading.Lock()
        self._waiting, self._stopped = 0, False
        self._incoming.mkdir(exist_ok=True)
        for place in sorted(self._incoming.iterdir()):
            job = Job(place, refused=_number(place / REFUSED))
            job.images = len(job.paths)
            if job.images:
                self._waiting += job.images
                self.jobs.put(job)
            else:
                shutil.rmtree(place, ignore_errors=True)

    @property
    def waiting(self) -> int:
        """Images that are stored and not evaluated yet."""
        return self._waiting

    def add(self, association: int, header: Header, data: bytes) -> bool:
        """Store an image; it is on disk on return. False if it is refused: no more may wait, or the node stops.

        Args:
            association: identifies the association that it came by.
            header: its header.
            data: bytes of its file.

        Raises:
            OSError: the disk is full.
        """
        key = association, header.series
        with self._lock:
            series = self._open.get(key)
            if self._stopped or self._waiting >= self._capacity:
                if series is not None:
                    series.refused += 1
                return False
            if series is None:
                series = _Open(self._incoming / f"{time.time_ns():020d}")
                series.folder.mkdir()
                self._open[key] = series
            series.images += 1
            series.writing += 1
            self._waiting += 1
            path = series.folder / f"{series.images + series.refused:06d}.dcm"
        try:
            write_atomically(path, data)
        except OSError:
            with self._lock:
                self._waiting -= 1
                series.images -= 1
                series.refused += 1
            raise
        finally:
            with self._lock:
                series.writing -= 1
                series.last = time.monotonic()
        return True

    def close(self, association: int) -> None:
        """Make the series of an association jobs: it has ended."""
        with self._lock:
            self._finish([key for key in self._open if key[0] == association])

    def close_quiet(self, seconds: float) -> None:
        """Make series jobs that have had no new image for so long."""
        now = time.monotonic()
        with self._lock:
            quiet = [key for key, each in self._open.items() if not each.writing and now - each.last >= seconds]
            self._finish(quiet)

    def stop(self) -> None:
        """Refuse every further image."""
        with self._lock:
            self._stopped = True

    def end(self) -> None:
        """Make all series jobs, and put the end behind them."""
        with self._lock:
            self._finish(list(self._open))
        self.jobs.put(None)

    def _finish(self, keys: list[tuple[int, tuple[str, str]]]) -> None:
        for key in keys:
            series = self._open.pop(key)
            if not series.images:
                shutil.rmtree(series.folder, ignore_errors=True)
                continue
            if series.refused:
                with suppress(OSError):
                    write_atomically(series.folder / REFUSED, str(series.refused))
            self.jobs.put(Job(series.folder, series.images, series.refused))

    def begin(self, job: Job) -> bool:
        """Count an attempt at a job; False if earlier ones ended the process, so that it must not be tried again."""
        attempts = _number(job.folder / ATTEMPTS)
        write_atomically(job.folder / ATTEMPTS, str(attempts + 1))
        return attempts < MAX_ATTEMPTS

    def done(self, job: Job, *, failed: bool = False) -> None:
        """Remove a job; one that failed goes to the folder ``failed``."""
        if failed:
            self._failed.mkdir(exist_ok=True)
            job.folder.rename(self._failed / job.folder.name)
        else:
            shutil.rmtree(job.folder)
        with self._lock:
            self._waiting -= job.images


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
