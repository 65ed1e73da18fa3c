"""Random access to the encoded image of a sample."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brain_dist.errors import Fault
from brain_dist.store.dataset import Dataset


def shard_path(root: Path, sources: Sequence[Path], shard: str) -> Path:
    """Path of a shard as the index names it; ``1/NAME.tar`` of a joined folder is in its second source."""
    if not sources:
        return root / shard
    number, _, name = shard.partition("/")
    return sources[int(number)] / name


class ShardReader:
    """Reads the encoded image of one sample at a time, by row, in any order and from several threads.

    Files are opened when they are first needed and stay open. A pickled copy (in a worker process) opens its own.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._files: dict[str, int] = {}
        columns = dataset.columns
        self._root, self._sources = dataset.root, dataset.sources
        self._keys, self._shards = columns["key"], columns["shard"]
        self._offsets, self._sizes, self._crcs = columns["offset"], columns["size"], columns["crc32"]

    def read(self, row: int) -> bytes:
        """Bytes of the encoded image of a row.

        Raises:
            Fault: the shard is missing, too short or damaged there.
        """
        shard, offset, size = self._shards[row], int(self._offsets[row]), int(self._sizes[row])
        place = f"{shard_path(self._root, self._sources, shard)}, sample {self._keys[row]} at byte {offset}"
        try:
            data = os.pread(self._descriptor(shard), size, offset)
        except OSError as error:
            raise Fault(
                f"{place}: cannot be read ({error.strerror}); check with `python -m brain_dist.shard verify`"
            ) from None
        if len(data) != size:
            raise Fault(f"{place}: the shard ends after {len(data)} of {size} bytes; copy or build it again")
        if zlib.crc32(data) != self._crcs[row]:
            raise Fault(f"{place}: the bytes are damaged (crc32 differs); copy or build the shard again")
        return data

    def _descriptor(self, shard: str) -> int:
        descriptor = self._files.get(shard)
        if descriptor is None:
            opened = os.open(shard_path(self._root, self._sources, shard), os.O_RDONLY | os.O_CLOEXEC)
            # If two threads open it at the same time, the first descriptor stays and the other is closed
            descriptor = self._files.setdefault(shard, opened)
            if descriptor != opened:
                os.close(opened)
        return descriptor

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def __del__(self) -> None:
        self.close()
