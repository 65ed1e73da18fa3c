"""A shard's bytes are what Python's tarfile writes of the same members."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from dataclasses import asdict
from pathlib import Path

import pytest

from brain_dist.building.tar import Sample, Shard, write_shard


def sample(folder: Path, number: int, size: int) -> Sample:
    file = folder / f"{number}.jpg"
    file.write_bytes(bytes((number + place) % 251 for place in range(size)))
    key = f"{'k' * (90 if number % 2 else 1)}{number:05d}"[-90:]
    data = file.read_bytes()
    return Sample(
        number, key, "png" if number % 3 else "jpg", file, size, zlib.crc32(data), number % 4, f'{{"n":{number}}}'
    )


@pytest.mark.parametrize("sizes", [[], [1], [511, 512, 513], [100_000, 7, 3_000, 8_192, 5]])
def test_shard_is_what_tarfile_writes(tmp_path, sizes):
    samples = [sample(tmp_path, number, size) for number, size in enumerate(sizes)]
    entry, offsets = write_shard(Shard("a.tar", samples), tmp_path)
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for one in samples:
            members = {
                one.extension: one.file.read_bytes(),
                "cls": str(one.label).encode(),
                "json": one.metadata.encode(),
            }
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{one.key}.{extension}")
                info.size, info.mode, info.mtime = len(data), 0o644, 0
                tar.addfile(info, io.BytesIO(data))
    written = (tmp_path / "a.tar").read_bytes()
    assert written == expected.getvalue()
    assert asdict(entry) == {
        "name": "a.tar",
        "sha256": hashlib.sha256(written).hexdigest(),
        "size": len(written),
        "samples": len(sizes),
    }
    assert [written[place : place + one.size] for place, one in zip(offsets, samples, strict=True)] == [
        one.file.read_bytes() for one in samples
    ]
