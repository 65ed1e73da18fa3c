"""Synthetic images and collections for the tests of shards; every image is a function of its number."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")


def draw(number: int, size: int = 96) -> Image.Image:
    """A gray "head" [size, size]: an ellipse of smooth texture with a bright rim on black; numbers look different."""
    rng = np.random.default_rng(number)
    cells = Image.fromarray(rng.integers(40, 220, (14, 14), dtype=np.uint8))
    texture = np.asarray(cells.resize((size, size), Image.Resampling.BICUBIC), dtype=float)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    a, b = rng.uniform(0.6, 0.85, 2)
    radius = np.hypot(x / a, y / b)
    head = np.where(radius < 0.9, texture, np.where(radius < 1.0, 235.0, 0.0))
    return Image.fromarray(head.astype(np.uint8))


def write_collection(root: Path, each: int = 12, size: int = 96) -> Path:
    """Write a folder per class with ``each`` JPEGs, and a table of patients with three slices each."""
    lines = ["id,class,patient"]
    for label, kind in enumerate(CLASSES):
        (root / kind).mkdir(parents=True)
        for number in range(each):
            identity = f"{kind[:2]}{number:03d}"
            draw(1000 * label + number, size).save(root / kind / f"{identity}.jpg", quality=92)
            lines.append(f"{identity},{kind},{kind[:2]}-patient{number // 3}")
    (root / "patients.csv").write_text("\n".join(lines) + "\n")
    return root


def png_bytes(header: bytes, data: bytes) -> bytes:
    """A PNG file with this content of IHDR and this compressed image data."""
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    encoded = (
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(encoded)
