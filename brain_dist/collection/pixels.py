"""One image file → the image that a shard stores and what is measured on it, in a single decode.

A file that all decoders read alike (8-bit gray or colour JPEG, 8-bit gray or RGB PNG) is kept byte for byte. A PNG with
colours loses the chunks by which decoders differ on its gray pixels (:func:`.decoding.without_gamma`). Everything else
is stored as a new, upright 8-bit gray PNG, because decoders differ on it: transparency and palettes (composited on
black), 16-bit and float values (mapped to gray by a :class:`~brain_dist.collection.window.Window`), CMYK, EXIF
rotation, and formats other than JPEG and PNG.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from brain_dist.collection.decoding import (
    MIN_SIDE,
    WIDE_MODES,
    BadImage,
    decode_gray,
    decode_image,
)
from brain_dist.collection.measures import head_and_thumbnails, perceptual_hash, pixel_hash
from brain_dist.collection.window import DEFAULT_WINDOW, Window

JPEG_QUALITY = 95  # of JPEGs that are made smaller, unless the user chooses another one


@dataclass(frozen=True)
class MeasuredImage:
    """An image as it is stored, and what is measured on it.

    Attributes:
        ext: ``jpg`` or ``png``, the format of the stored bytes.
        payload: the new encoding, or the file's own without some chunks; None if the file's own bytes are stored.
        size: number of stored bytes.
        crc32: checksum of the stored bytes.
        width: width of the stored image, pixels.
        height: height of the stored image, pixels.
        mode: Pillow's mode of the source file, or the type of its values.
        pixel_hash: hash of the stored pixels, equal for exact copies.
        phash: perceptual hash of the stored pixels.
        head: the head's bounding box (x, y, width, height), pixels.
        thumbs: uint8 [2, 64, 64], the whole image and the head alone, each squeezed to a square, because copies may
            lose their aspect ratio and their borders.
        attributes: what the pixels say besides: ``same_channels``, the other channels that equal the chosen one, and of
            a mask ``boxes`` and ``lesion_area``.
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
    attributes: dict[str, Any] = field(default_factory=dict)


class StoredImage(NamedTuple):
    """An image as a shard stores it.

    Attributes:
        pixels: uint8 [H, W], its gray pixels as a reader decodes them (a JPEG with its loss).
        mode: Pillow's mode of the source file, or the type of its values.
        ext: ``jpg`` or ``png``, the format of the stored bytes.
        encoded: the stored bytes.
        own: whether these are the file's own bytes.
    """

    pixels: np.ndarray
    mode: str
    ext: str
    encoded: bytes
    own: bool


class Smaller(NamedTuple):
    """How large images are made smaller.

    Attributes:
        max_side: an image with a longer side is resized to it (Lanczos), in pixels, and stored as gray JPEG if it was a
            JPEG, otherwise as gray PNG.
        jpeg_quality: quality of these JPEGs, 1 to 100.
    """

    max_side: int
    jpeg_quality: int = JPEG_QUALITY


@dataclass(frozen=True)
class Contents:
    """What the header of a MATLAB, DICOM or NIfTI file says.

    Attributes:
        slices: for each slice its number, None if the file has only one, and its attributes.
        label: class name, if the file states it.
        patient: patient, if the file states it.
        study: what else may tell patients apart, if all files state the same patient.
        volume: whether the slices belong to one scan, so that they must stay together even if no patient is known.
    """

    slices: list[tuple[int | None, dict[str, Any]]]
    label: str | None = None
    patient: str | None = None
    study: str | None = None
    volume: bool = False


SlicePixels = Callable[[int | None], tuple[np.ndarray, str]]  # slice number → uint8 [H, W], type of the stored values


def examine(
    data: bytes, smaller: Smaller | None = None, window: Window = DEFAULT_WINDOW, channel: int | None = None
) -> MeasuredImage:
    """Decode and measure an encoded image.

    Args:
        data: bytes of the file.
        smaller: how a large image is made smaller; None keeps the size.
        window: maps 16-bit and float values to gray.
        channel: which channel of an 8-bit image is stored, from 0; None stores the image.

    Raises:
        BadImage: ``data`` is not exactly one complete image of a usable size, or has no such channel.
    """
    if channel is None:
        return _measure(store_image(data, smaller, window))
    image, upright, mode = decode_image(data)
    names = image.getbands()
    if channel >= len(names) or mode in WIDE_MODES or mode == "P":
        raise BadImage(f"has the channels {', '.join(names)} (mode {mode}), but the recipe chooses channel {channel}")
    bands = [np.asarray(band) for band in upright.split()]
    chosen = bands[channel]
    same = [n for n, band in enumerate(bands) if n != channel and np.ptp(band) and np.array_equal(band, chosen)]
    measured = _measure(store_values(chosen, mode, smaller))
    return replace(measured, attributes={"same_channels": same} if same else {})


def examine_values(pixels: np.ndarray, mode: str, smaller: Smaller | None = None) -> MeasuredImage:
    """Measure a slice uint8 [H, W] that has no encoding, to be stored as gray PNG; ``mode`` is its source's type."""
    return _measure(store_values(pixels, mode, smaller))


def store_image(
    data: bytes, smaller: Smaller | None = None, window: Window = DEFAULT_WINDOW, channel: int | None = None
) -> StoredImage:
    """An encoded image as a shard stores it.

    Args:
        data: bytes of the file.
        smaller: how a large image is made smaller; None keeps the size.
        window: maps 16-bit and float values to gray.
        channel: which channel of a colour image is stored, from 0; None stores the image. A gray image is stored as it
            is, unlike in a build, where a recipe says what the files have.

    Raises:
        BadImage: ``data`` is not exactly one complete image of a usable size, or has no such channel.
    """
    if channel is not None:
        image, upright, mode = decode_image(data)
        bands = upright.split()
        if len(bands) >= 3:
            if channel >= len(bands):
                names = ", ".join(image.getbands())
                raise BadImage(f"has the channels {names}, but the model was trained on channel {channel}")
            return store_values(np.asarray(bands[channel]), mode, smaller)
    stored = _store(*decode_gray(data, window), smaller)
    return stored._replace(own=stored.encoded is data)


def store_values(pixels: np.ndarray, mode: str, smaller: Smaller | None = None) -> StoredImage:
    """A slice uint8 [H, W] that has no encoding, as a shard stores it: as gray PNG."""
    return _store(pixels, mode, "png", None, smaller)


def _store(pixels: np.ndarray, mode: str, ext: str, encoded: bytes | None, smaller: Smaller | None) -> StoredImage:
    """Encode gray pixels uint8 [H, W] unless they have an encoding that can be stored."""
    if smaller is not None and max(pixels.shape) > smaller.max_side:
        gray = Image.fromarray(pixels)
        gray.thumbnail((smaller.max_side, smaller.max_side), Image.Resampling.LANCZOS, reducing_gap=None)
        if min(gray.size) < MIN_SIDE:
            height, width = pixels.shape
            raise BadImage(
                f"is {width} x {height} pixels, and {gray.width} x {gray.height} when it is made smaller; a slice has "
                f"at least {MIN_SIDE} on each side"
            )
        pixels, payload = _encode(gray, ext, smaller.jpeg_quality)
        return StoredImage(pixels, mode, ext, payload, own=False)
    if encoded is None:
        pixels, payload = _encode(Image.fromarray(pixels), "png")
        return StoredImage(pixels, mode, "png", payload, own=False)
    return StoredImage(pixels, mode, ext, encoded, own=False)


def _measure(stored: StoredImage) -> MeasuredImage:
    """What is measured on a stored image."""
    pixels = stored.pixels
    head, thumbs = head_and_thumbnails(pixels)
    height, width = pixels.shape
    return MeasuredImage(
        ext=stored.ext,
        payload=None if stored.own else stored.encoded,
        size=len(stored.encoded),
        crc32=zlib.crc32(stored.encoded),
        width=width,
        height=height,
        mode=stored.mode,
        pixel_hash=pixel_hash(pixels),
        phash=perceptual_hash(thumbs[0]),
        head=head,
        thumbs=thumbs,
    )


def _encode(gray: Image.Image, ext: str, quality: int = JPEG_QUALITY) -> tuple[np.ndarray, bytes]:
    """The pixels as a reader will decode them (a JPEG with its loss), and their encoding."""
    buffer = io.BytesIO()
    if ext == "png":
        gray.save(buffer, "PNG")
        return np.asarray(gray), buffer.getvalue()
    gray.save(buffer, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(io.BytesIO(buffer.getvalue()))), buffer.getvalue()
