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


def add_lesion(image: Image.Image, number: int) -> tuple[Image.Image, np.ndarray]:
    """A gray head without its rim and with a white ellipse somewhere in it, and where that is, bool [H, W]."""
    pixels = np.minimum(np.asarray(image) // 2, 110)
    height, width = pixels.shape
    rng = np.random.default_rng([number, 7])
    x, y = rng.uniform(0.38, 0.62, 2)
    a, b = rng.uniform(0.06, 0.14, 2)
    rows, columns = np.mgrid[:height, :width] + 0.5
    mask = np.hypot((columns / width - x) / a, (rows / height - y) / b) < 1
    return Image.fromarray(np.where(mask, 255, pixels).astype(np.uint8)), mask


def write_lgg(root: Path, patients: int = 6, slices: int = 6, size: int = 96, repeated: int = 0) -> Path:
    """Write patients in the layout of the LGG collection on Kaggle; every second slice has a tumour.

    In the last ``repeated`` patients the third channel repeats FLAIR.
    """
    for patient in range(patients):
        folder = root / "kaggle_3m" / f"TCGA_CS_{4900 + patient}_1996{1000 + patient}"
        folder.mkdir(parents=True)
        for number in range(1, slices + 1):
            seed = 100 * patient + number
            before, flair = draw(seed, size), draw(50_000 + seed, size)
            after, mask = add_lesion(draw(90_000 + seed, size), seed)
            if number % 2:
                after, mask = draw(70_000 + seed, size), np.zeros_like(mask)
            if patient >= patients - repeated:
                after = flair
            Image.merge("RGB", (before, flair, after)).save(folder / f"{folder.name}_{number}.tif")
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{folder.name}_{number}_mask.tif")
    (root / "kaggle_3m" / "data.csv").write_text("Patient,age\n")
    return root
