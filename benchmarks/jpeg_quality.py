"""Bytes, decoding time and loss of smaller pictures: ``python -m benchmarks.jpeg_quality DIR [DIR…] [--max-side N]``.

Makes JPEGs of each collection smaller as ``shard build --max-side N --jpeg-quality Q`` does. Decoding is timed as
processor time of one thread, with libjpeg-turbo, to gray. The loss is the peak signal-to-noise ratio of all pixels
together, relative to the same smaller pictures before their encoding.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from brain_dist.collection.pixels import Smaller, examine
from brain_dist.errors import UserError, run

QUALITIES = (95, 90, 85, 75)
ROUNDS = 5  # of decoding, of which the fastest counts


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jpeg_quality", description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--max-side", type=int, default=256, metavar="N", help="pixels (default: 256)")
    parser.add_argument("--images", type=int, default=300, metavar="N", help="images per collection (default: 300)")
    arguments = parser.parse_args()
    print("| collection | quality | kB an image | of the originals | decoding, CPU ms | PSNR, dB |")
    print("|---|---|---|---|---|---|")
    for folder in arguments.folders:
        files = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]
        files = [data for data in files if max(simplejpeg.decode_jpeg_header(data)[:2]) > arguments.max_side]
        if not files:
            raise UserError(f"{folder} has no JPEGs of more than {arguments.max_side} pixels")
        files = files[:: -(-len(files) // arguments.images)]
        kept = sum(map(len, files))
        row("bytes kept", folder, files, kept, None)
        pictures = [smaller_picture(data, arguments.max_side) for data in files]
        for quality in QUALITIES:
            stored = [examine(data, Smaller(arguments.max_side, quality)).payload or data for data in files]
            row(str(quality), folder, stored, kept, pictures)
    return 0


def smaller_picture(data: bytes, max_side: int) -> np.ndarray:
    """The gray picture uint8 [H, W] before it is encoded."""
    gray = Image.open(io.BytesIO(data)).convert("L")
    gray.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=None)
    return np.asarray(gray)


def row(name: str, folder: Path, files: list[bytes], kept: int, pictures: list[np.ndarray] | None) -> None:
    """Print a row of the table."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        decoded = [simplejpeg.decode_jpeg(data, "GRAY", strict=False)[:, :, 0] for data in files]
        seconds.append(time.process_time() - start)
    size = sum(map(len, files))
    loss = ""
    if pictures is not None:
        errors = [np.square(one - other.astype(float)) for one, other in zip(decoded, pictures, strict=True)]
        mean = sum(error.sum() for error in errors) / sum(error.size for error in errors)
        loss = f"{10 * np.log10(255**2 / mean):.1f}"
    time_of_one = f"{1000 * min(seconds) / len(files):.3f}"
    cells = (folder.name, name, f"{size / len(files) / 1000:.1f}", f"{size / kept:.0%}", time_of_one, loss)
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    raise SystemExit(run(main))
