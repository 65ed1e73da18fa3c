"""Images are read ahead on threads: in order, bounded, and with faults where the image is needed."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from brain_dist.collection.pixels import examine
from brain_dist.common.progress import no_progress
from brain_dist.errors import Fault
from brain_dist.store.dataset import open_dataset
from brain_dist.store.reader import ShardReader, _reader, read_ahead, read_thumbs


class CountingReader(ShardReader):
    """Counts the images that it has read."""

    count = 0

    def read(self, row: int) -> bytes:
        data = super().read(row)
        self.count += 1
        return data


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reading")]


def wait_until(reader: CountingReader, count: int) -> None:
    deadline = time.monotonic() + 60
    while reader.count < count and time.monotonic() < deadline:
        time.sleep(0.001)
    assert reader.count == count


@pytest.mark.parametrize("prefetch", [0, 3])
def test_batches_are_read_ahead_in_order_and_no_further_than_stated(phantom_shards: Path, prefetch: int) -> None:
    dataset = open_dataset(phantom_shards)
    rows = np.random.default_rng(0).permutation(len(dataset))[:48].reshape(12, 4)
    reader, requested = CountingReader(dataset), 0

    def batches() -> Iterator[int]:
        nonlocal requested
        for number in range(len(rows)):
            requested += 1
            yield number

    expected = [[ShardReader(dataset).read(row) for row in batch] for batch in rows.tolist()]
    ahead = read_ahead(lambda number: [reader.read(row) for row in rows[number].tolist()], batches(), prefetch)
    for number in range(12):
        assert next(ahead) == (number, expected[number])
        # the next 4 + prefetch are read without being asked for, and no more
        wait_until(reader, min(4 * (number + 5 + prefetch), 48))
        assert requested == min(number + 5 + prefetch, 12)
    assert next(ahead, None) is None


def test_a_damaged_image_is_a_fault_where_it_is_needed_and_the_threads_end(
    phantom_shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantom_shards, tmp_path / "shards")
    dataset = open_dataset(tmp_path / "shards")
    rows = np.arange(12)
    damaged = int(rows[7])
    path = dataset.root / str(dataset.columns["shard"][damaged])
    data = bytearray(path.read_bytes())
    data[int(dataset.columns["offset"][damaged]) + 50] ^= 1
    path.write_bytes(data)

    ahead = read_ahead(ShardReader(dataset).read, rows.tolist())
    assert [next(ahead)[0] for _ in range(7)] == list(range(7))
    with pytest.raises(Fault, match=f"{path}, sample {dataset.columns['key'][damaged]}.*crc32"):
        next(ahead)
    for thread in reading_threads():
        thread.join(60)
    assert not reading_threads()


def test_threads_end_when_the_iterator_is_closed(phantom_shards: Path) -> None:
    dataset = open_dataset(phantom_shards)
    ahead = read_ahead(ShardReader(dataset).read, range(20))
    next(ahead)
    assert reading_threads()
    ahead.close()
    for thread in reading_threads():
        thread.join(60)
    assert not reading_threads()


def test_thumbnails_of_several_folders_are_on_disk(phantom_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(phantom_shards, tmp_path / "shards")
    datasets = open_dataset(phantom_shards), open_dataset(tmp_path / "shards")
    rows = [5, 2], [7]
    thumbs = read_thumbs(list(zip(datasets, rows, strict=True)), 1, no_progress)
    assert isinstance(thumbs, np.memmap)
    expected = [examine(ShardReader(datasets[0]).read(row)).thumbs for row in (5, 2, 7)]
    np.testing.assert_array_equal(thumbs, expected)
    for shard in (tmp_path / "shards").glob("*.tar"):
        shard.unlink()
    with pytest.raises(Fault, match="cannot be read"):
        read_thumbs([(datasets[0], [1]), (datasets[1], [7])], 1, no_progress)
    assert _reader.cache_info().currsize == 0, "no file stays open"
