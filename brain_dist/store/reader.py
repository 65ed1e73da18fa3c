"""Random access to the encoded image of a sample."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.errors import Fault
from brain_dist.store.dataset import Dataset

if TYPE_CHECKING:
    pass


def shard_path(root: Path, sources: Sequence[Path], shard: str) -> Path:
    """Where a shard of the index lies; ``1/NAME.tar`` of a joined folder is in its second source."""
    if not sources:
        return root / shard
    number, _, name = shard.partition("/")
    return sources[int(number)] / name


class ShardReader:
    """Reads one sample's encoded image at a time, by row, in any order and from several threads.

    Files are opened when first needed and kept open; a pickled copy (for a worker process) opens its own.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._files: dict[str, int] = {}
        columns = dataset.columns
        self._root, self._sources = dataset.root, dataset.sources
        self._keys, self._shards = columns["key"], columns["shard"]
        self._offsets, self._sizes, self._crcs = columns["offset"], columns["size"], columns["crc32"]

    def read(self, row: int) -> bytes:
        """Bytes of the encoded image of ``row``; :class:`Fault` names shard, key and offset where they are bad."""
        shard, offset, size = self._shards[row], int(self._offsets[row]), int(self._sizes[row])
        where = f"{shard_path(self._root, self._sources, shard)}, sample {self._keys[row]} at byte {offset}"
        try:
            data = os.pread(self._descriptor(shard), size, offset)
        except OSError as error:
            raise Fault(f"{where}: cannot be read ({error.strerror}); `brain_dist.shard verify` checks all") from None
        if len(data) != size:
            raise Fault(f"{where}: the shard ends after {len(data)} of {size} bytes; copy or build it again")
        if zlib.crc32(data) != self._crcs[row]:
            raise Fault(f"{where}: the bytes are damaged (crc32 differs); copy or build the shard again")
        return data

    def _descriptor(self, shard: str) -> int:
        descriptor = self._files.get(shard)
        if descriptor is None:
            opened = os.open(shard_path(self._root, self._sources, shard), os.O_RDONLY | os.O_CLOEXEC)
            # Two threads may both open it: the first one stays, the other is closed.
            descriptor = self._files.setdefault(shard, opened)
            if descriptor != opened:
                os.close(opened)
        return descriptor

    def close(self) -> None:
        """Close the files; reading again opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def __del__(self) -> None:
        self.close()
