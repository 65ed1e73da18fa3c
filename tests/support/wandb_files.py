"""Reads the files that wandb writes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any


def records(folder: Path) -> list[Any]:
    """wandb's records, in order, out of the LevelDB log that a run's folder holds (7 bytes of wandb's header first)."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("run-*.wandb")
    data, at, part, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # the tail of a block holds no header
            at += left
            continue
        _, length, kind = struct.unpack(
            "<IHB", data[at : at + 7]
        )  # checksum, length, 1 whole, 2 first, 3 middle, 4 last
        part = (part if kind in (3, 4) else b"") + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(Record.FromString(part))
    return found


def history(folder: Path) -> list[dict[str, Any]]:
    """The logged rows, of all kinds."""
    rows = [record.history.item for record in records(folder) if record.WhichOneof("record_type") == "history"]
    return [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row} for row in rows]
