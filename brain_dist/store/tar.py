"""Write WebDataset shards: plain tars, and beside each the index that DALI's ``fn.readers.webdataset`` wants.

Every header field that could vary between machines or runs (owner, times) is fixed, so that the same samples give the
same bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist.common.files import write_durably
from brain_dist.errors import UserError

IDX_VERSION = "v1.2"


BLOCK = 512  # of a tar: a member's header fills one, its data follow


_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}


@dataclass(frozen=True)
class Sample:
    """One sample to write: the file that holds its encoded image, and the texts of its .cls and .json members."""

    row: int  # the caller's number of it
    key: str
    extension: str
    file: Path
    size: int
    crc32: int
    label: int
    about: str


@dataclass(frozen=True)
class Shard:
    """A shard to write: file name and samples in order."""

    name: str
    samples: list[Sample]


def parse_shard_size(text: str) -> tuple[str, int]:
    """``"64MB"`` → ("bytes", 64,000,000); ``"500"`` → ("samples", 500); :class:`UserError` on anything else."""
    match = re.fullmatch(r"([1-9]\d*)\s*([kmg]b)?", text.strip().lower())
    if match is None:
        raise UserError(f"--shard-size {text!r} must be a number of samples such as 500, or of bytes such as 64MB")
    unit = match[2] or ""
    return ("bytes" if unit else "samples"), int(match[1]) * _UNITS[unit]


def cut(sizes: Sequence[int], shard_size: str) -> list[int]:
    """Image sizes in bytes, in order → the shard of each: as few shards as ``shard_size`` allows, of even size."""
    unit, limit = parse_shard_size(shard_size)
    weights = np.asarray(sizes, dtype=np.int64) if unit == "bytes" else np.ones(len(sizes), dtype=np.int64)
    total = int(weights.sum())
    shards = -(-total // limit)
    before = np.cumsum(weights) - weights
    # An image larger than a shard's share skips numbers: return_inverse closes the gaps.
    return np.unique(before * shards // max(total, 1), return_inverse=True)[1].tolist()


def write_shard(shard: Shard, folder: Path) -> tuple[dict[str, Any], list[int]]:
    """Write a shard and its .idx, on disk (fsync) on return.

    Returns its entry in the manifest and the offset of each sample's image. :class:`UserError` where an image is not
    what it was when it was examined.
    """
    path = folder / shard.name
    offsets: list[int] = []
    lines: list[str] = []
    digest, place = hashlib.sha256(), 0
    with path.open("wb") as file:
        for sample in shard.samples:
            offsets.append(place + BLOCK)
            entries = []
            for extension, data in _members(sample).items():
                name = f"{sample.key}.{extension}"
                entries.append(f"{extension} {place + BLOCK} {len(data)} {name}")
                piece = b"".join((_header(name, len(data)), data, bytes(-len(data) % BLOCK)))
                digest.update(piece)
                file.write(piece)
                place += len(piece)
            lines.append(" ".join(entries))
        end = bytes(2 * BLOCK + (-place - 2 * BLOCK) % tarfile.RECORDSIZE)
        digest.update(end)
        file.write(end)
        file.flush()
        os.fsync(file.fileno())
    write_durably(path.with_suffix(".idx"), idx_text(lines).encode())
    entry = {"name": shard.name, "sha256": digest.hexdigest(), "size": place + len(end), "samples": len(lines)}
    return entry, offsets


def _members(sample: Sample) -> dict[str, bytes]:
    """Extension → contents of a sample's three members."""
    try:
        image = sample.file.read_bytes()
    except OSError:
        image = b""  # gone since it was examined: changed, as below
    if zlib.crc32(image) != sample.crc32:
        raise UserError(f"{sample.file.name} (sample {sample.key}) changed while the shards were built; build again")
    return {sample.extension: image, "cls": str(sample.label).encode(), "json": sample.about.encode()}


def _header(name: str, size: int) -> bytes:
    """What :meth:`tarfile.TarInfo.tobuf` gives, in a tenth of its time; keys are short enough for USTAR's 100 bytes."""
    header = bytearray(_BLANK)
    header[: len(name)] = name.encode("ascii")
    header[124:135] = b"%011o" % size
    header[148:155] = b"%06o\0" % sum(header)
    return bytes(header)


def _blank() -> bytes:
    """The header of a nameless, empty file; the checksum counts itself as eight spaces."""
    info = tarfile.TarInfo()
    info.mode, info.mtime = 0o644, 0
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[148:156] = b" " * 8
    return bytes(block)


_BLANK = _blank()


def idx_text(lines: Sequence[str]) -> str:
    """DALI's index file: the version and the number of samples, then a line a sample."""
    return "".join(f"{line}\n" for line in [f"{IDX_VERSION} {len(lines)}", *lines])
