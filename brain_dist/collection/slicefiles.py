"""The slices in an image file of any format: what its header says, and its slices decoded and measured."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from brain_dist.collection import dicom, matlab, nifti
from brain_dist.collection.decoding import IMAGE_SUFFIXES, BadImage, check_file_size
from brain_dist.collection.pixels import (
    Contents,
    MeasuredImage,
    Smaller,
    StoredImage,
    examine,
    examine_values,
    store_image,
    store_values,
)
from brain_dist.collection.recipes import RecipePart

_READERS = {"mat": matlab, "dicom": dicom, "nifti": nifti}  # format → module with SUFFIXES and two functions
SUFFIXES = {"images": IMAGE_SUFFIXES, **{name: reader.SUFFIXES for name, reader in _READERS.items()}}


def read_contents(path: Path, part: RecipePart) -> Contents:
    """The slices of a file, without their pixels. An image file is not opened, because it has only one.

    Raises:
        BadImage: the header cannot be read.
    """
    if part.format == "images":
        return Contents([(None, {})])
    with _opened(path) as file:
        return _READERS[part.format].read_contents(file, part)


def examine_file(
    path: Path, part: RecipePart, frames: Sequence[int | None], smaller: Smaller | None = None
) -> Iterator[MeasuredImage | str]:
    """Decode and measure the slices ``frames`` of a file, which is read once.

    Yields:
        for each slice its measured image, or the reason why it cannot be used.
    """
    try:
        with _opened(path) as file:
            if part.format == "images":
                check_file_size(os.fstat(file.fileno()).st_size)
                image = examine(file.read(), smaller, part.window, part.channel)
            else:
                pixels = _READERS[part.format].read_pixels(file, part)
    except BadImage as error:
        yield from [str(error)] * len(frames)
        return
    if part.format == "images":
        yield image
        return
    for frame in frames:
        try:
            with errors_as_bad_image():
                gray, dtype = pixels(frame)
            yield examine_values(gray, dtype, smaller)
        except BadImage as error:
            yield str(error)


def stored_slices(
    data: bytes,
    part: RecipePart,
    choose: Callable[[list[int | None]], list[int | None]],
    smaller: Smaller | None = None,
) -> list[tuple[int | None, StoredImage | str]]:
    """The slices of a file as a build would store them.

    Args:
        data: bytes of the file.
        part: its format and how its values become gray.
        choose: of the numbers of all slices, those that are wanted.
        smaller: see :func:`brain_dist.collection.pixels.examine`.

    Returns:
        For each slice its number (None if the file has only one) and its image, or the reason why it cannot be used.

    Raises:
        BadImage: the file as a whole cannot be used.
    """
    with errors_as_bad_image():
        if part.format == "images":
            return [(None, store_image(data, smaller, part.window, part.channel))]
        reader = _READERS[part.format]
        frames = [frame for frame, _ in reader.read_contents(file_of(data), part).slices]
        pixels = reader.read_pixels(file_of(data), part)
    slices: list[tuple[int | None, StoredImage | str]] = []
    for frame in choose(frames):
        try:
            with errors_as_bad_image():
                gray, dtype = pixels(frame)
            slices.append((frame, store_values(gray, dtype, smaller)))
        except BadImage as error:
            slices.append((frame, str(error)))
    return slices


class _NamedBytes(io.BytesIO):
    """Bytes as a file with a name, which pydicom asks for."""

    name = "bytes"


def file_of(data: bytes) -> BinaryIO:
    """Bytes as an open file, from which readers may also peek."""
    return io.BufferedReader(_NamedBytes(data))


def read_own_mask(path: Path, part: RecipePart) -> np.ndarray | None:
    """The mask bool [H, W] that a file has of its slice itself, as MATLAB files of Cheng's collection do, or None.

    Raises:
        BadImage: the file or its mask cannot be read.
    """
    if part.format != "mat":
        return None
    with _opened(path) as file:
        return matlab.read_mask(file)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The open file; whatever is wrong with it or the disk is raised as :class:`BadImage`."""
    with errors_as_bad_image():
        if not path.is_file():
            raise BadImage("is not a file, or is a broken link")
        with path.open("rb") as file:
            if not file.peek(1):
                raise BadImage("is empty (0 bytes)")
            yield file


@contextmanager
def errors_as_bad_image() -> Iterator[None]:
    """Turn what a library raises on damaged bytes, which may be any exception, into :class:`BadImage`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about defects that the library tolerates
            yield
    except BadImage:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise BadImage(f"cannot be read ({error.strerror})") from error
        lines = str(error).strip().splitlines()
        raise BadImage(f"cannot be decoded ({lines[0] if lines else type(error).__name__})") from error
