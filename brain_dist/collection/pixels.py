"""One image file → what the shards store of it and what the audit compares, with a single full decode.

A file whose stored bytes every decoder reads alike (8-bit gray or colour JPEG, 8-bit gray or RGB PNG) is kept byte for
byte. Everything else is stored anew as an upright 8-bit gray PNG, because decoders differ on it: alpha and palettes
(composited on black), 16-bit and float values (rescaled, see :func:`to_8_bit`), CMYK, EXIF rotation, and formats other
than JPEG and PNG.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from PIL import Image, ImageOps

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp",
                            ".jp2", ".pgm", ".ppm", ".pnm"})  # fmt: skip
MAX_PIXELS = 8192 * 8192  # more is a decompression bomb, or a slide scan that is no MRI slice
MIN_SIDE = 16  # pixels; nothing smaller is a slice
WINDOW = {"percentiles": [0.5, 99.5]}  # of each picture's own values; they become 0 and 255
JPEG_QUALITY = 95  # of a JPEG made smaller by max_side
THUMB = 64  # side of the thumbnails in which near duplicates are compared
# What Pillow's readers raise on damaged data, found by flipping bytes in files of every format.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, zlib.error)
# The first 8 rows of a DCT, rounded so that all products and sums of perceptual_hash are whole numbers below 2**53:
# exact in any order, so that every processor finds the same hash
_COSINES = np.rint(2**16 * np.cos(np.pi / (2 * THUMB) * np.outer(np.arange(8), 2 * np.arange(THUMB) + 1)))
_WIDE_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N", "F"})


class BadImage(Exception):
    """The file is no image that can be decoded completely; the text says why, without the file's name."""


@dataclass(frozen=True)
class Examined:
    """What one decode tells of an image; ``width`` to ``head`` describe the *stored* pixels, ``mode`` the source file.

    ``payload`` is the new encoding, or None where the file's own bytes are stored. ``head`` is (x, y, width, height) in
    pixels. ``thumbs`` is uint8 [2, 64, 64]: the whole picture and the head alone, each squeezed to a square, because
    copies lose their aspect ratio and their borders.
    """

    ext: str
    payload: bytes | None
    size: int
    crc32: int
    width: int
    height: int
    mode: str
    pixel_hash: str
    phash: str
    head: tuple[int, int, int, int]
    thumbs: np.ndarray


def examine(data: bytes, max_side: int | None = None, window: Mapping[str, Any] = WINDOW) -> Examined:
    """Decode an encoded image; raises :class:`BadImage` on anything but one whole picture.

    16-bit and float values go through ``window`` (see :func:`to_8_bit`). An image whose longer side exceeds
    ``max_side`` is made smaller (Lanczos) and stored as gray JPEG of quality 95 if it was a JPEG, else as gray PNG.
    """
    image, mode, keep = _decode(data, window)
    return _measure(image, mode, keep, data, max_side)


def examine_values(pixels: np.ndarray, mode: str, max_side: int | None = None) -> Examined:
    """The same of a slice without an encoding of its own: uint8 [H, W], stored as gray PNG; ``mode`` names its kind."""
    return _measure(Image.fromarray(pixels), mode, False, b"", max_side)


def _measure(image: Image.Image, mode: str, keep: bool, data: bytes, max_side: int | None) -> Examined:
    """Encode an upright image in mode L or RGB where its ``data`` are not kept, and describe what is stored."""
    payload = None
    ext = "jpg" if image.format in ("JPEG", "MPO") else "png"
    gray = image if image.mode == "L" else image.convert("L")
    if max_side is not None and max(gray.size) > max_side:
        keep = False
        gray.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=None)
    elif not keep:
        ext = "png"
    if not keep:
        buffer = io.BytesIO()
        if ext == "jpg":
            gray.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
            gray = Image.open(io.BytesIO(buffer.getvalue()))  # the loss is part of what readers will see
        else:
            gray.save(buffer, "PNG")
        payload = data = buffer.getvalue()
    pixels = np.asarray(gray)
    head = head_box(pixels)
    thumbs = thumbnails(gray, head)
    return Examined(
        ext=ext,
        payload=payload,
        size=len(data),
        crc32=zlib.crc32(data),
        width=gray.width,
        height=gray.height,
        mode=mode,
        pixel_hash=pixel_hash(pixels),
        phash=perceptual_hash(thumbs[0]),
        head=head,
        thumbs=thumbs,
    )


def _decode(data: bytes, window: Mapping[str, Any]) -> tuple[Image.Image, str, bool]:
    """Encoded bytes → (image in mode L or RGB with its ``format`` set, mode of the file, may its bytes be kept)."""
    if not data:
        raise BadImage("is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is the stricter limit
            image = Image.open(io.BytesIO(data))
        check_size(image.width, image.height)
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # an MPO is one photograph and its previews
            raise BadImage(f"holds {image.n_frames} pictures; one slice a file is expected")  # type: ignore[attr-defined]
        mode, kind = image.mode, image.format
        if kind in ("JPEG", "MPO") and mode == "RGB":
            image.draft(
                "L", image.size
            )  # luminance as stored: what DALI's gray decode gives, and no chroma to upsample
        image.load()
        turned = image.getexif().get(0x0112) in range(2, 9)
        upright = ImageOps.exif_transpose(image) if turned else image
    except Image.DecompressionBombError as error:
        raise BadImage("is far larger than any MRI slice (decompression bomb)") from error
    except Image.UnidentifiedImageError as error:
        raise BadImage(f"is not an image{_looks_like(data)}") from error
    except _DAMAGE as error:
        raise BadImage(f"cannot be decoded ({error})") from error
    deep = kind == "PNG" and data[24] != 8  # IHDR's bit depth: decoders cut 16 bits down, and spread 2, differently
    plain = kind in ("JPEG", "MPO", "PNG") and mode in ("L", "RGB") and "transparency" not in image.info
    keep = plain and not turned and not deep
    result = upright if plain and upright.mode in ("L", "RGB") else _to_gray(upright, window)
    result.format = kind
    return result, mode, keep


def check_size(width: int, height: int) -> None:
    """:class:`BadImage` for a picture that is no MRI slice by its size in pixels; ask before decoding it."""
    if width * height > MAX_PIXELS:
        raise BadImage(f"is {width} x {height} pixels, more than {MAX_PIXELS:,} in all")
    if min(width, height) < MIN_SIDE:
        raise BadImage(f"is {width} x {height} pixels; a slice has at least {MIN_SIDE} a side")


def to_8_bit(values: np.ndarray, window: Mapping[str, Any]) -> np.ndarray:
    """Values of any number type [H, W] → uint8 [H, W]: linear within the window, 0 below it and 255 above.

    ``window`` is {percentiles: [low, high]} of these values, or {center, width} in their unit: from center - width / 2
    to center + width / 2. Raises :class:`BadImage` on values that are no number.
    """
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise BadImage("holds values that are not finite")
    if "percentiles" in window:
        low, high = np.percentile(values, window["percentiles"])
        if high <= low:
            low, high = float(values.min()), float(values.max())
    else:
        low, high = window["center"] - window["width"] / 2, window["center"] + window["width"] / 2
    scaled = (values - low) / (high - low if high > low else 1.0)
    return np.rint(np.clip(scaled, 0.0, 1.0) * 255).astype(np.uint8)


def _to_gray(image: Image.Image, window: Mapping[str, Any]) -> Image.Image:
    """Any other mode → 8-bit gray: transparency on black, wide values through the window."""
    if image.mode in _WIDE_MODES:
        return Image.fromarray(to_8_bit(np.asarray(image), window))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "La", "PA", "RGBa"):
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("L")
    return image.convert("RGB").convert("L")


def _looks_like(data: bytes) -> str:
    start = data[:512].lstrip().lower()
    return " but a web page" if start.startswith((b"<!doctype html", b"<html", b"<?xml")) else ""


def pixel_hash(pixels: np.ndarray) -> str:
    """128-bit hex hash (XXH3) of gray pixels uint8 [H, W] together with their size.

    Nobody gains by forging a copy here: a hash that is 25 times faster than a cryptographic one will do.
    """
    digest = xxhash.xxh3_128(struct.pack("<II", *pixels.shape))
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def perceptual_hash(thumb: np.ndarray) -> str:
    """16 hex digits of a whole picture's thumbnail uint8 [64, 64]: signs of the 8 x 8 lowest DCT coefficients about
    their median (pHash, Zauner 2010)."""
    low = _COSINES @ thumb.astype(np.float64) @ _COSINES.T
    return np.packbits(low > np.median(low)).tobytes().hex()


def thumbnails(gray: Image.Image, head: tuple[int, int, int, int]) -> np.ndarray:
    """uint8 [2, 64, 64]: the whole picture and its ``head`` box, area-averaged."""
    x, y, width, height = head
    if gray.width % THUMB or gray.height % THUMB:
        whole = gray.resize((THUMB, THUMB), Image.Resampling.BOX)
    else:
        whole = gray.reduce((gray.width // THUMB, gray.height // THUMB))  # the same in less than half the time
    part = gray.resize((THUMB, THUMB), Image.Resampling.BOX, box=(x, y, x + width, y + height))
    return np.stack([np.asarray(whole), np.asarray(part)])


def head_box(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """The head's bounding box (x, y, width, height) in gray pixels uint8 [H, W]; the whole picture if none stands out.

    The background is the median of the four corners (some publishers' is gray), and foreground rises above it by 14 %
    of the way to the 99.5th percentile of every other row. A row or column counts when 2 % of it is foreground, so that
    noise and lettering do not stretch the box. The outermost 3 % are not looked at, where some pictures have a white
    frame; a box that reaches them goes to the edge.
    """
    height, width = pixels.shape
    rim_y, rim_x = height * 3 // 100, width * 3 // 100
    inner = pixels[rim_y : height - rim_y, rim_x : width - rim_x]
    side_y, side_x = max(1, height // 14), max(1, width // 14)
    corners = [inner[:side_y, :side_x], inner[:side_y, -side_x:], inner[-side_y:, :side_x], inner[-side_y:, -side_x:]]
    background = sum(sorted(np.median(np.stack(corners).reshape(4, -1), axis=1).tolist())[1:3]) / 2
    threshold = background + max(8.0, 0.14 * (_percentile(inner[::2], 99.5) - background))
    foreground = (inner > int(threshold)).view(
        np.uint8
    )  # of whole numbers the same as > threshold, in a third of the time
    rows = np.flatnonzero(np.add.reduce(foreground, axis=1, dtype=np.uint32) / foreground.shape[1] > 0.02)
    columns = np.flatnonzero(np.add.reduce(foreground, axis=0, dtype=np.uint32) / foreground.shape[0] > 0.02)
    if rows.size < 2 or columns.size < 2:
        return 0, 0, width, height
    top, bottom = _span(rows, rim_y, height)
    left, right = _span(columns, rim_x, width)
    return left, top, right - left, bottom - top


def _percentile(pixels: np.ndarray, percent: float) -> float:
    """:func:`numpy.percentile` of uint8 [H, W], by counting the values: several times faster than by ordering them."""
    reached = np.cumsum(Image.fromarray(pixels).histogram())
    place, share = divmod((pixels.size - 1) * percent / 100, 1)
    low, high = np.searchsorted(reached, (place, place + 1), side="right").tolist()
    return low + (high - low) * share


def _span(used: np.ndarray, rim: int, length: int) -> tuple[int, int]:
    first, last = int(used[0]), int(used[-1]) + 1
    return (first + rim if first > 0 else 0), (last + rim if last < length - 2 * rim else length)
