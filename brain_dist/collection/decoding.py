"""The bytes of an image file → upright gray pixels, and what makes a file or an array unusable.

Decoders differ on some files; :mod:`brain_dist.collection.pixels` says which of them are stored as they are.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, TiffImagePlugin

from brain_dist.collection.window import Window

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp",
                  ".jp2", ".pgm", ".ppm", ".pnm")  # fmt: skip
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "JPEG2000", "PPM")  # Pillow's names of them
MAX_PIXELS = 8192 * 8192  # a larger image is a decompression bomb or a pathology slide, not an MRI slice
MIN_SIDE = 16  # pixels
MAX_FILE = 2**30  # bytes of an image file, which is read whole; more than MAX_PIXELS take without compression
MAX_TILE = 2**22  # pixels of a TIFF's tile, which is decoded whole however small the image is
MAX_SCANS = 100  # of a JPEG; encoders write about ten, and each costs as much time as a whole image
# What Pillow's readers raise on damaged data, found by flipping bytes in files of every format
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, zlib.error)
WIDE_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
_ALPHA_MODES = frozenset({"RGBA", "LA", "La", "PA", "RGBa"})
_ORIENTATION = 0x0112  # EXIF tag; 2 to 8 are mirrored or rotated
_START_OF_SCAN = b"\xff\xda"  # marker in a JPEG
_METADATA = (b"Exif\0\0", b"http://ns.adobe.com/xap/")  # begin the metadata in a JPEG that may ask for a rotation


class BadImage(Exception):
    """The file is not an image that can be decoded completely; the message says why, without the file's name."""


def decode_gray(data: bytes, window: Window) -> tuple[np.ndarray, str, str, bytes | None]:
    """Upright gray pixels uint8 [H, W], mode of their source, jpg or png, and their encoding if that can be stored."""
    if not data:
        raise BadImage("is empty (0 bytes)")
    check_scans(data)
    plain = _decode_plain_jpeg(data)
    if plain is not None:
        return *plain, "jpg", data
    image, upright, mode = decode_image(data, luminance=True)
    rotated = upright is not image
    jpeg = image.format in ("JPEG", "MPO")
    # data[24] is the bit depth in a PNG's IHDR: decoders reduce 16 bits, and expand 2, differently
    other_depth = image.format == "PNG" and data[24] != 8
    is_plain = (jpeg or image.format == "PNG") and mode in ("L", "RGB") and "transparency" not in image.info
    keep = is_plain and not rotated and not other_depth
    gray = upright.convert("L") if is_plain and upright.mode in ("L", "RGB") else _to_gray(upright, window)
    if mode in WIDE_MODES and _is_zero_white(image):
        gray = ImageOps.invert(gray)
    if keep and image.format == "PNG" and _has_colours(image):
        data = without_gamma(data)
    return np.asarray(gray), mode, "jpg" if jpeg else "png", data if keep else None


def _has_colours(image: Image.Image) -> bool:
    return image.mode == "RGB" and len({band.tobytes() for band in image.split()}) > 1


def without_gamma(data: bytes) -> bytes:
    """A PNG without the chunks that state a gamma or a colour profile; ``data`` itself if it has none.

    The stored values stay the same. Where a PNG states a gamma, libpng, and so OpenCV, turns colours into gray in
    linear light; other decoders weigh the stored values.
    """
    pieces, start = [data[:8]], 8
    while start + 8 <= len(data):
        stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] not in (b"gAMA", b"sRGB", b"iCCP"):
            pieces.append(data[start:stop])
        start = stop
    return data if sum(map(len, pieces)) == len(data) else b"".join(pieces)


def decode_image(data: bytes, *, luminance: bool = False) -> tuple[Image.Image, Image.Image, str]:
    """An image as it is stored, the same image upright, and the mode of its file.

    Args:
        data: bytes of the file.
        luminance: decode a colour JPEG as gray.

    Raises:
        BadImage: ``data`` is not exactly one complete image of a usable size.
    """
    check_scans(data)
    try:
        image, mode = _load(data, luminance)
        rotated = image.getexif().get(_ORIENTATION) in range(2, 9)
        return image, ImageOps.exif_transpose(image) if rotated else image, mode
    except Image.DecompressionBombError as error:
        raise BadImage("is far larger than any MRI slice (decompression bomb)") from error
    except Image.UnidentifiedImageError as error:
        page = data[:512].lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml"))
        raise BadImage(f"is not an image{' but a web page' if page else ''}") from error
    except _DECODE_ERRORS as error:
        raise BadImage(f"cannot be decoded ({error})") from error


def _decode_plain_jpeg(data: bytes) -> tuple[np.ndarray, str] | None:
    """Gray pixels uint8 [H, W] and mode of a flawless JPEG in gray or YCbCr; None if Pillow must decode the data.

    libjpeg-turbo by itself gives the same pixels as Pillow in two thirds of the time. Pillow decides about files with
    any flaw, and turns those whose EXIF data say so.
    """
    # in all of the data: a thumbnail in front of the metadata has a start of a scan, too
    if not data.startswith(b"\xff\xd8") or any(name in data for name in _METADATA):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        if colors not in ("Gray", "YCbCr"):
            return None
        check_size(width, height)
        pixels = simplejpeg.decode_jpeg(data, "GRAY")  # strict: also warnings of the decoder raise ValueError
    except ValueError:
        return None
    return pixels[:, :, 0], "L" if colors == "Gray" else "RGB"


def _load(data: bytes, luminance: bool) -> tuple[Image.Image, str]:
    """The decoded image, and the mode of its file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is the stricter limit
        image = Image.open(io.BytesIO(data), formats=FORMATS)  # others may start programs: EPS starts Ghostscript
    check_size(image.width, image.height)
    # not n_frames, which goes through the whole file; an MPO is one photograph and its previews
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise BadImage("contains several images; a file must contain one slice")
    if image.format == "TIFF":
        _check_tile(image)
    mode = image.mode
    if luminance and image.format in ("JPEG", "MPO") and mode == "RGB":
        # the stored luminance, which DALI's gray decoding returns, too; no chroma has to be upsampled
        image.draft("L", image.size)
    image.load()
    return image, mode


def _check_tile(image: Any) -> None:
    tile = [image.tag_v2.get(tag, 0) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)]
    if tile[0] * tile[1] > MAX_TILE:
        raise BadImage(f"has tiles of {tile[0]} x {tile[1]} pixels, more than {MAX_TILE:,} in all (decompression bomb)")


def check_scans(data: bytes) -> None:
    """Raise :class:`BadImage` if a JPEG has so many scans that decoding it would take minutes; others pass."""
    if data.startswith(b"\xff\xd8") and data.count(_START_OF_SCAN) > MAX_SCANS:
        raise BadImage(f"has more than {MAX_SCANS} scans (decompression bomb)")


def encoded_size(data: bytes) -> tuple[int, int]:
    """Width and height of a stored JPEG or PNG by its header, several times faster than by Pillow.

    Raises:
        BadImage: the data do not begin with such a header.
    """
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack_from(">II", data, 16)
            return width, height
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, struct.error):
        raise BadImage("has no header of a JPEG or PNG file") from None
    return width, height


def check_file_size(size: int) -> None:
    """Raise :class:`BadImage` if an image file has so many bytes that it is something else; call it before reading."""
    if size > MAX_FILE:
        raise BadImage(f"has {size:,} bytes, more than {MAX_FILE:,}")


def check_size(width: int, height: int) -> None:
    """Raise :class:`BadImage` if an image of this size in pixels is not an MRI slice; call it before decoding."""
    if width * height > MAX_PIXELS:
        raise BadImage(f"is {width} x {height} pixels, more than {MAX_PIXELS:,} in all")
    if min(width, height) < MIN_SIDE:
        raise BadImage(f"is {width} x {height} pixels; a slice has at least {MIN_SIDE} on each side")


def inflate(data: bytes, limit: int, wbits: int = zlib.MAX_WBITS) -> bytes:
    """Decompress a zlib stream, or a raw one if ``wbits`` is negative, using memory for at most ``limit`` bytes.

    Raises:
        BadImage: it has more bytes, or is incomplete.
    """
    stream = zlib.decompressobj(wbits)
    inflated = stream.decompress(data, limit + 1)
    if len(inflated) > limit:
        raise BadImage(f"inflates to more than {limit:,} bytes (decompression bomb)")
    if not stream.eof:
        raise BadImage("cannot be decoded (incomplete compressed data)")
    return inflated


def check_numeric(dtype: np.dtype) -> None:
    """Raise :class:`BadImage` unless values of this type are real numbers."""
    if dtype.kind not in "biuf":
        raise BadImage(f"contains values of type {dtype}, which are not real numbers")


def to_8_bit(values: np.ndarray, window: Window) -> np.ndarray:
    """Map values [H, W] of any number type to gray uint8 [H, W], linearly within the window and clipped outside it.

    Raises:
        BadImage: a value is not finite.
    """
    scaled = values.astype(np.float64)
    if not np.isfinite(scaled).all():
        raise BadImage("contains values that are not finite")
    low, high = window.limits(scaled)
    scaled -= low  # in place: an image of 50 million pixels takes 400 MB
    scaled /= high - low if high > low else 1.0
    np.clip(scaled, 0.0, 1.0, out=scaled)
    scaled *= 255
    return np.rint(scaled, out=scaled).astype(np.uint8)


def _to_gray(image: Image.Image, window: Window) -> Image.Image:
    """An image of any other mode as 8-bit gray: transparency on black, wide values by the window."""
    if image.mode in WIDE_MODES:
        return Image.fromarray(to_8_bit(np.asarray(image), window))
    return on_black(image).convert("L")


def on_black(image: Image.Image) -> Image.Image:
    """An image of up to 8 bits a channel in mode RGB, with what is transparent composited on black."""
    if "transparency" in image.info or image.mode in _ALPHA_MODES:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return image.convert("RGB")


def _is_zero_white(image: Any) -> bool:
    """Whether the 0 of a TIFF is white, which Pillow takes into account up to 8 bits only."""
    return image.format == "TIFF" and image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
