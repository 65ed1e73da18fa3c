"""Random access to the encoded images of samples."""

from __future__ import annotations

import functools
import os
import resource
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from brain_dist.collection.decoding import BadImage, encoded_size
from brain_dist.common.progress import Progress
from brain_dist.common.scratch import scratch
from brain_dist.common.workers import worker_pool
from brain_dist.errors import Fault
from brain_dist.store.dataset import Dataset, open_dataset

Item = TypeVar("Item")
Images = TypeVar("Images")
READING_THREADS = 4  # that read a batch each


def shard_path(root: Path, sources: Sequence[Path], shard: str) -> Path:
    """Path of a shard as the index names it; ``1/NAME.tar`` of a joined folder is in its second source."""
    if not sources:
        return root / shard
    number, _, name = shard.partition("/")
    return sources[int(number)] / name


class _OpenFile:
    """A descriptor that is closed when the last thread that uses it has finished."""

    def __init__(self, root: Path, sources: Sequence[Path], shard: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(shard_path(root, sources, shard), os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class ShardReader:
    """Reads the encoded image of one sample at a time, by row, in any order and from several threads.

    The files that were used last stay open, up to a quarter of what the process may open. A pickled copy (in a worker
    process) opens its own.
    """

    def __init__(self, dataset: Dataset) -> None:
        columns = dataset.columns
        self._root, self._sources = dataset.root, dataset.sources
        self._keys, self._shards = columns["key"], columns["shard"]
        self._offsets, self._sizes, self._crcs = columns["offset"], columns["size"], columns["crc32"]
        self._widths, self._heights = columns["width"], columns["height"]
        self._open = self._cached_open()

    def read(self, row: int) -> bytes:
        """Bytes of the encoded image of a row.

        Raises:
            Fault: the shard is missing, too short or damaged there, or the image has another size than in the index.
        """
        shard, offset, size = self._shards[row], int(self._offsets[row]), int(self._sizes[row])
        try:
            file = self._open(shard)  # keeps the file open while this thread reads
            data = os.pread(file.descriptor, size, offset)
        except OSError as error:
            raise Fault(
                f"{self.place(row)}: cannot be read ({error.strerror}); check with `python -m brain_dist.shard verify`"
            ) from None
        if len(data) != size:
            raise Fault(f"{self.place(row)}: the shard ends after {len(data)} of {size} bytes; copy or build it again")
        if zlib.crc32(data) != self._crcs[row]:
            raise Fault(f"{self.place(row)}: the bytes are damaged (crc32 differs); copy or build the shard again")
        # a decoder takes as much memory as the image asks for
        expected = int(self._widths[row]), int(self._heights[row])
        try:
            if (stored := encoded_size(data)) != expected:
                raise BadImage(f"the image has {stored} pixels (width, height), in the index {expected}")
        except BadImage as error:
            raise Fault(f"{self.place(row)}: {error}; build the shard again") from None
        return data

    def place(self, row: int) -> str:
        """Shard, sample and byte of a row, for messages."""
        path = shard_path(self._root, self._sources, self._shards[row])
        return f"{path}, sample {self._keys[row]} at byte {self._offsets[row]}"

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        self._open.cache_clear()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._open = self._cached_open()

    def _cached_open(self) -> functools._lru_cache_wrapper[_OpenFile]:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        size = 1024 if limit == resource.RLIM_INFINITY else min(1024, max(1, limit // 4))
        return functools.lru_cache(maxsize=size)(functools.partial(_OpenFile, self._root, self._sources))


def read_ahead(
    read: Callable[[Item], Images], batches: Iterable[Item], prefetch: int = 0
) -> Generator[tuple[Item, Images], None, None]:
    """Read the images of batches on threads, ahead of the caller, so that it rarely waits for storage.

    The threads end with the iterator; it holds the encoded images of 5 + ``prefetch`` batches at most.

    Args:
        read: reads the images of a batch, and checks them.
        batches: what to read, and to yield with the images.
        prefetch: number of batches that the caller prepares in advance. Up to 4 + ``prefetch`` batches are read ahead:
            while one read takes long, the caller waits for it only when as many steps have passed.

    Raises:
        Fault: an image of the batch that is next cannot be read or is damaged.
    """
    batches = iter(batches)
    ahead: deque[tuple[Item, Future[Images]]] = deque()
    pool = ThreadPoolExecutor(READING_THREADS, "reading")
    count = READING_THREADS + prefetch
    try:
        while True:
            ahead.extend((item, pool.submit(read, item)) for item in islice(batches, count + 1 - len(ahead)))
            if not ahead:
                return
            item, images = ahead.popleft()
            yield item, images.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def batches_ahead(prefetch: int) -> int:
    """The most batches that a loader has read beyond the last one that it yielded, with this ``data.prefetch``."""
    return READING_THREADS + 2 * prefetch + 1


def read_thumbs(parts: Sequence[tuple[Dataset, Iterable[int]]], workers: int, progress: Progress) -> np.ndarray:
    """Thumbnails uint8 [N, 2, 64, 64] of rows of several datasets, see :mod:`brain_dist.collection.measures`.

    They are on disk, so that memory does not grow with them.

    Raises:
        Fault: a shard is missing or damaged.
    """
    from brain_dist.collection.measures import THUMB

    samples = [(dataset.root, dataset.sources, int(row)) for dataset, rows in parts for row in rows]
    thumbs = scratch((len(samples), 2, THUMB, THUMB), np.uint8)
    try:
        with worker_pool(workers) as run:
            for row, thumb in enumerate(run(_read_thumbs, samples, 16)):
                thumbs[row] = thumb
                progress("decoding", row + 1, len(samples))
    finally:
        _reader.cache_clear()
    return thumbs


@functools.cache
def _reader(root: Path, sources: tuple[Path, ...]) -> ShardReader:
    """One reader per worker process and dataset."""
    return ShardReader(open_dataset(root, sources))


def _read_thumbs(sample: tuple[Path, tuple[Path, ...], int]) -> np.ndarray:
    """(folder, its sources, row) → thumbnails of the image, uint8 [2, 64, 64]."""
    from brain_dist.collection.decoding import BadImage
    from brain_dist.collection.pixels import examine

    root, sources, row = sample
    try:
        return examine(_reader(root, sources).read(row)).thumbs
    except BadImage as error:
        raise Fault(f"{root}, row {row} of its index: the stored image {error}; build it again") from None
