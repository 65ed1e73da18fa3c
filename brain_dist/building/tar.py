"""Divide samples into WebDataset shards and write these.

A shard is a plain tar with the index file that DALI's ``fn.readers.webdataset`` expects. Header fields that could
differ between machines or runs (owner, times) are constant, so that the same samples give the same bytes.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from brain_dist.common.files import durable_file, sha256_file, write_durably
from brain_dist.errors import UserError
from brain_dist.store.manifest import ShardEntry

IDX_VERSION = "v1.2"

_EMPTY_HEADER = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}


class Sample(NamedTuple):
    """A sample to write.

    Attributes:
        row: number of the sample.
        key: name of its members in the tar, without the extension.
        extension: extension of its image.
        file: file that contains its encoded image.
        size, crc32: bytes and checksum of the image.
        label: content of its .cls member.
        metadata: content of its .json member.
    """

    row: int
    key: str
    extension: str
    file: Path
    size: int
    crc32: int
    label: int
    metadata: str


class Shard(NamedTuple):
    """A shard to write: file name and samples in order."""

    name: str
    samples: list[Sample]


def parse_shard_size(text: str) -> tuple[str, int]:
    """``"64MB"`` → ("bytes", 64,000,000); ``"500"`` → ("samples", 500).

    Raises:
        UserError: anything else.
    """
    match = re.fullmatch(r"([1-9]\d*)\s*([kmg]b)?", text.strip().lower())
    if match is None:
        raise UserError(f"--shard-size {text!r} must be a number of samples such as 500, or of bytes such as 64MB")
    unit = match[2] or ""
    return ("bytes" if unit else "samples"), int(match[1]) * _UNITS[unit]


def plan_shards(name: str, samples: list[Sample], codes: np.ndarray, splits: Sequence[str], seed: int,
                shard_size: str) -> list[Shard]:  # fmt: skip
    """Divide N samples into as few shards as ``shard_size`` allows, of even size; every shard mixes the classes.

    Args:
        name: name of the dataset.
        samples: the samples; their number is their position.
        codes: int [N], positions in ``splits``; a negative code leaves the sample out.
        splits: names of the splits.
        seed: seed of the order in each split.
        shard_size: limit of a shard, see :func:`parse_shard_size`.

    Returns:
        The shards, sorted by name.
    """
    unit, limit = parse_shard_size(shard_size)
    shards = []
    for code, split in enumerate(splits):
        rows = np.flatnonzero(codes == code)
        order = rows[np.random.default_rng([seed, 2, code]).permutation(len(rows))]
        weights = np.array([samples[row].size if unit == "bytes" else 1 for row in order], dtype=np.int64)
        total = int(weights.sum())
        numbers = (np.cumsum(weights) - weights) * -(-total // limit) // max(total, 1)
        parts = np.split(order, np.flatnonzero(np.diff(numbers)) + 1) if total else []
        shards += [
            Shard(f"{name}-{split}-{number:05d}.tar", [samples[row] for row in part])
            for number, part in enumerate(parts)
        ]
    return sorted(shards, key=lambda shard: shard.name)


def write_shard(shard: Shard, folder: Path) -> tuple[ShardEntry, list[int]]:
    """Write a shard and its .idx, which are on disk on return.

    Returns:
        The shard's entry in the manifest and the offset of each sample's image.

    Raises:
        UserError: an image changed since it was examined.
    """
    path = folder / shard.name
    offsets: list[int] = []
    lines: list[str] = []
    with durable_file(path) as file:
        for sample in shard.samples:
            entries = []
            offsets.append(file.tell() + tarfile.BLOCKSIZE)
            for extension, data in _members(sample).items():
                name = f"{sample.key}.{extension}"
                entries.append(f"{extension} {file.tell() + tarfile.BLOCKSIZE} {len(data)} {name}")
                file.write(b"".join((_header(name, len(data)), data, bytes(-len(data) % tarfile.BLOCKSIZE))))
            lines.append(" ".join(entries))
        end = 2 * tarfile.BLOCKSIZE
        file.write(bytes(end + (-file.tell() - end) % tarfile.RECORDSIZE))
        size = file.tell()
    write_durably(path.with_suffix(".idx"), idx_text(lines).encode())
    return ShardEntry(shard.name, sha256_file(path), size, len(lines)), offsets


def _members(sample: Sample) -> dict[str, bytes]:
    """Extension → content of a sample's three members."""
    try:
        image = sample.file.read_bytes()
    except OSError:
        image = b""  # deleted since it was examined; the checksum below reports it
    if zlib.crc32(image) != sample.crc32:
        raise UserError(f"{sample.file.name} (sample {sample.key}) changed while the shards were built; build again")
    return {sample.extension: image, "cls": str(sample.label).encode(), "json": sample.metadata.encode()}


def _header(name: str, size: int) -> bytes:
    """What :class:`tarfile.TarInfo` writes in USTAR format, several times faster; ``name`` has up to 100 characters."""
    header = bytearray(_EMPTY_HEADER)
    header[: len(name)] = name.encode("ascii")
    header[124:136] = b"%011o\0" % size
    header[148:156] = b" " * 8  # the checksum counts itself as spaces
    header[148:155] = b"%06o\0" % sum(header)
    return bytes(header)


def idx_text(lines: Sequence[str]) -> str:
    """DALI's index file: the version and the number of samples, then one line per sample."""
    return "".join(f"{line}\n" for line in [f"{IDX_VERSION} {len(lines)}", *lines])
