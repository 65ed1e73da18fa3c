"""One image file → what the shards store of it and what the audit compares, with a single full decode.

A file whose stored bytes every decoder reads alike (8-bit gray or colour JPEG, 8-bit gray or RGB PNG) is kept byte for
byte. Everything else is stored anew as an upright 8-bit gray PNG, because decoders differ on it: alpha and palettes
(composited on black), 16-bit and float values (rescaled, see :data:`WINDOW`), CMYK, EXIF rotation, and formats other
than JPEG and PNG.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp",
                            ".jp2", ".pgm", ".ppm", ".pnm"})  # fmt: skip
MAX_PIXELS = 8192 * 8192  # more is a decompression bomb, or a slide scan that is no MRI slice
WINDOW = (0.5, 99.5)  # percentiles of a 16-bit or float image that become 0 and 255
JPEG_QUALITY = 95  # of a JPEG made smaller by max_side
THUMB = 64  # side of the thumbnails in which near duplicates are compared
# What Pillow's readers raise on damaged data, found by flipping bytes in files of every format.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, zlib.error)
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


def examine(data: bytes, max_side: int | None = None) -> Examined:
    """Decode an encoded image; raises :class:`BadImage` on anything but one whole picture.

    An image whose longer side exceeds ``max_side`` is made smaller (Lanczos) and stored as gray JPEG of quality 95 if
    it was a JPEG, as gray PNG otherwise.
    """
    image, mode, keep = _decode(data)
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
    return Examined(
        ext=ext,
        payload=payload,
        size=len(data),
        crc32=zlib.crc32(data),
        width=gray.width,
        height=gray.height,
        mode=mode,
        pixel_hash=pixel_hash(pixels),
        phash=perceptual_hash(gray),
        head=head,
        thumbs=thumbnails(gray, head),
    )


def _decode(data: bytes) -> tuple[Image.Image, str, bool]:
    """Encoded bytes → (image in mode L or RGB with its ``format`` set, mode of the file, may its bytes be kept)."""
    if not data:
        raise BadImage("is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is the stricter limit
            image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"is {image.width} x {image.height} pixels, more than {MAX_PIXELS:,} in all")
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # an MPO is one photograph and its previews
            raise BadImage(f"holds {image.n_frames} pictures; one slice a file is expected")  # type: ignore[attr-defined]
        mode, kind = image.mode, image.format
        if kind in ("JPEG", "MPO") and mode == "RGB":
            image.draft(
                "L", image.size
            )  # luminance as stored: what DALI's gray decode gives, and no chroma to upsample
        image.load()
        upright = ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as error:
        raise BadImage("is far larger than any MRI slice (decompression bomb)") from error
    except Image.UnidentifiedImageError as error:
        raise BadImage(f"is not an image{_looks_like(data)}") from error
    except _DAMAGE as error:
        raise BadImage(f"cannot be decoded ({error})") from error
    turned = image.getexif().get(0x0112) in range(2, 9)
    deep = kind == "PNG" and data[24] != 8  # IHDR's bit depth: decoders cut 16 bits down, and spread 2, differently
    plain = kind in ("JPEG", "MPO", "PNG") and mode in ("L", "RGB") and "transparency" not in image.info
    keep = plain and not turned and not deep
    result = upright if plain and upright.mode in ("L", "RGB") else _to_gray(upright)
    result.format = kind
    return result, mode, keep


def _to_gray(image: Image.Image) -> Image.Image:
    """Any other mode → 8-bit gray: transparency on black, wide values between their :data:`WINDOW` percentiles."""
    if image.mode in _WIDE_MODES:
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise BadImage("holds values that are not finite")
        low, high = np.percentile(values, WINDOW)
        if high <= low:
            low, high = float(values.min()), float(values.max())
        scaled = (values - low) / (high - low if high > low else 1.0)
        return Image.fromarray(np.rint(np.clip(scaled, 0.0, 1.0) * 255).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "La", "PA", "RGBa"):
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("L")
    return image.convert("RGB").convert("L")


def _looks_like(data: bytes) -> str:
    start = data[:512].lstrip().lower()
    return " but a web page" if start.startswith((b"<!doctype html", b"<html", b"<?xml")) else ""


def pixel_hash(pixels: np.ndarray) -> str:
    """128-bit hex hash of gray pixels uint8 [H, W] together with their size."""
    digest = hashlib.blake2b(struct.pack("<II", *pixels.shape), digest_size=16)
    digest.update(pixels.tobytes())
    return digest.hexdigest()


def perceptual_hash(gray: Image.Image) -> str:
    """16 hex digits: signs of the 8 x 8 lowest DCT coefficients about their median (pHash, Zauner 2010)."""
    from scipy.fft import dctn

    small = np.asarray(gray.resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    low = dctn(small, type=2)[:8, :8]
    return np.packbits(low > np.median(low)).tobytes().hex()


def thumbnails(gray: Image.Image, head: tuple[int, int, int, int]) -> np.ndarray:
    """uint8 [2, 64, 64]: the whole picture and its ``head`` box, area-averaged."""
    x, y, width, height = head
    boxes = ((0, 0, gray.width, gray.height), (x, y, x + width, y + height))
    return np.stack([np.asarray(gray.resize((THUMB, THUMB), Image.Resampling.BOX, box=box)) for box in boxes])


def head_box(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """The head's bounding box (x, y, width, height) in gray pixels uint8 [H, W]; the whole picture if none stands out.

    The background is the median of the four corners (some publishers' is gray), and foreground rises above it by 14 %
    of the way to the 99.5th percentile. A row or column counts when 2 % of it is foreground, so that noise and
    lettering do not stretch the box. The outermost 3 % are not looked at, where some pictures have a white frame; a
    box that reaches them goes to the edge.
    """
    height, width = pixels.shape
    rim_y, rim_x = height * 3 // 100, width * 3 // 100
    inner = pixels[rim_y : height - rim_y, rim_x : width - rim_x]
    side_y, side_x = max(1, height // 14), max(1, width // 14)
    corners = [inner[:side_y, :side_x], inner[:side_y, -side_x:], inner[-side_y:, :side_x], inner[-side_y:, -side_x:]]
    background = float(np.median([np.median(corner) for corner in corners]))
    foreground = inner > background + max(8.0, 0.14 * (float(np.percentile(inner, 99.5)) - background))
    rows = np.flatnonzero(foreground.mean(axis=1) > 0.02)
    columns = np.flatnonzero(foreground.mean(axis=0) > 0.02)
    if rows.size < 2 or columns.size < 2:
        return 0, 0, width, height
    top, bottom = _span(rows, rim_y, height)
    left, right = _span(columns, rim_x, width)
    return left, top, right - left, bottom - top


def _span(used: np.ndarray, rim: int, length: int) -> tuple[int, int]:
    first, last = int(used[0]), int(used[-1]) + 1
    return (first + rim if first > 0 else 0), (last + rim if last < length - 2 * rim else length)
