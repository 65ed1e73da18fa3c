"""Damage the bytes of a file as bad disks, broken transfers and attackers do."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "a list": lambda data: b"[1, 2]\n",
    "another object": lambda data: b'{"a": 1}\n',
    "binary": lambda data: bytes(range(128, 256)),
}


def damage(path: Path, kind: str) -> None:
    """Replace a file by a damaged one, see :data:`DAMAGES`."""
    path.write_bytes(DAMAGES[kind](path.read_bytes()))


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flip, insert, delete or repeat bytes, mostly near the start, where headers are; or cut the file."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 32))):
        place = int(len(damaged) * rng.random() ** rng.choice((1, 4))) if damaged else 0
        kind = rng.randrange(5)
        if kind == 0 and damaged:
            damaged[min(place, len(damaged) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 2:
            del damaged[place : place + rng.randrange(1, 9)]
        elif kind == 3 and damaged:
            damaged[place : place + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
        elif kind == 4 and rng.random() < 0.2:
            del damaged[place:]
    return bytes(damaged)
