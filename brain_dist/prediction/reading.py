"""From the bytes of a file to the pixels that the network sees: which format it has, which of its slices are wanted."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from brain_dist.collection import dicom
from brain_dist.collection.decoding import BadImage, check_numeric, check_size, to_8_bit
from brain_dist.collection.measures import are_blank, head_and_thumbnails
from brain_dist.collection.pixels import StoredImage, store_image, store_values
from brain_dist.collection.recipe_keys import SliceRange
from brain_dist.collection.recipes import RecipePart
from brain_dist.collection.slicefiles import errors_as_bad_image, file_of, stored_slices
from brain_dist.collection.window import DEFAULT_WINDOW, Window
from brain_dist.errors import UserError
from brain_dist.stream.contract import Contract

Choose = Callable[[list[int | None]], list[int | None]]
_NUMPY = b"\x93NUMPY"


@dataclass(frozen=True)
class Slice:
    """A slice of a file.

    Attributes:
        frame: its number in the file; None if the file has only one.
        pixels: what the network sees, uint8 [S, S] or [S, S, 3]; None if it cannot be used.
        unlike: whether it shows nothing or is of another modality than MR, so that no answer about it means anything.
        error: why it cannot be used.
    """

    frame: int | None
    pixels: np.ndarray | None = None
    unlike: bool = False
    error: str = ""


def parse_slices(text: str) -> Choose:
    """``all``, ``middle`` or ``FIRST:END`` (positions from 0, as in Python) → a function that chooses among slices.

    Raises:
        UserError: anything else.
    """
    if text == "all":
        return list
    if text == "middle":
        return lambda frames: frames[len(frames) // 2 : len(frames) // 2 + 1]
    match = re.fullmatch(r"(\d*):(\d*)", text)
    if match is None:
        raise UserError(f"--slices {text}: must be all, middle or FIRST:END, such as 40:60")
    start, stop = (int(group) if group else None for group in match.groups())
    return lambda frames: frames[start:stop]


def read_slices(data: bytes, name: str, contract: Contract, choose: Choose) -> list[Slice]:
    """The wanted slices of a file, as the network sees them. A file that cannot be used is one slice with an error.

    Args:
        data: bytes of the file.
        name: its name, whose suffix may tell its format.
        contract: the preprocessing.
        choose: which of several slices are wanted.
    """
    try:
        if not data:
            raise BadImage("is empty (0 bytes)")
        if data.startswith(_NUMPY):
            return array_slices(_load_array(data), contract, choose)
        kind = _format(data, name.lower())
        window = contract.window if kind == "dicom" else _plain_window(contract)
        across = SliceRange(axis=contract.slice_axis) if kind == "nifti" else None
        channel = contract.channel if kind == "images" else None
        part = RecipePart(format=kind, window=window, slices=across, channel=channel)
        other = kind == "dicom" and _is_other_modality(data)
        stored = stored_slices(data, part, choose, contract.smaller)
    except BadImage as error:
        return [Slice(None, error=str(error))]
    slices = [_of_stored(frame, image, contract) for frame, image in stored]
    if not slices:
        return [Slice(None, error="has no slice in the range of --slices")]
    return [replace(each, unlike=True) for each in slices] if other else slices


def array_slices(values: np.ndarray, contract: Contract, choose: Choose) -> list[Slice]:
    """The slices of an array: [H, W], a colour image uint8 [H, W, 3 or 4], or several slices [N, H, W].

    8-bit values are gray levels; others are mapped to gray by the contract's window.
    """
    try:
        with errors_as_bad_image():
            check_numeric(values.dtype)
            values = values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
            if values.ndim == 2:
                return [_of_array(None, values, contract)]
            if values.ndim == 3 and values.shape[-1] in (3, 4) and values.dtype == np.uint8:
                return [_of_stored(None, _store_colours(values, contract), contract)]
            if values.ndim == 3 and len(values):
                frames = choose(list(range(len(values))))
                return [_of_array(frame, values[frame], contract) for frame in frames if frame is not None] or [
                    Slice(None, error="has no slice in the range of --slices")
                ]
            raise BadImage(
                f"is an array of shape {list(values.shape)} and type {values.dtype}; expected [H, W], [N, H, W], or"
                " uint8 [H, W, 3]"
            )
    except BadImage as error:
        return [Slice(None, error=str(error))]


def image_slices(image: Any, contract: Contract) -> list[Slice]:
    """The one slice of a Pillow image, turned upright as its EXIF data say."""
    from PIL import ImageOps

    try:
        with errors_as_bad_image():
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "F":
                return array_slices(np.asarray(upright), contract, list)
            if upright.mode not in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"):  # those of PNG
                upright = upright.convert("RGB")
            return [_of_stored(None, _store_encoded(upright, contract), contract)]
    except BadImage as error:
        return [Slice(None, error=str(error))]


def _format(data: bytes, name: str) -> Literal["images", "mat", "dicom", "nifti"]:
    """The format of a file, by its content or else by its name."""
    if data[128:132] == b"DICM" or name.endswith(dicom.SUFFIXES):
        return "dicom"
    if name.endswith((".nii", ".nii.gz")) or data[344:348] in (b"n+1\0", b"ni1\0") or data.startswith(b"\x1f\x8b"):
        return "nifti"
    return "mat" if name.endswith(".mat") else "images"


def _load_array(data: bytes) -> np.ndarray:
    with errors_as_bad_image():
        return np.load(io.BytesIO(data), allow_pickle=False)


def _is_other_modality(data: bytes) -> bool:
    with errors_as_bad_image():
        return dicom.read_modality(file_of(data)) not in (None, "MR", "OT", "SC")


def _of_array(frame: int | None, values: np.ndarray, contract: Contract) -> Slice:
    try:
        check_size(values.shape[1], values.shape[0])
        gray = values if values.dtype == np.uint8 else to_8_bit(values, _plain_window(contract))
        stored = store_values(np.ascontiguousarray(gray), str(values.dtype), contract.smaller)
    except BadImage as error:
        return Slice(frame, error=str(error))
    return _of_stored(frame, stored, contract)


def _plain_window(contract: Contract) -> Window:
    """The window for files that state none."""
    return DEFAULT_WINDOW if contract.window.file else contract.window


def _store_colours(values: np.ndarray, contract: Contract) -> StoredImage:
    from PIL import Image

    return _store_encoded(Image.fromarray(np.ascontiguousarray(values)), contract)


def _store_encoded(image: Any, contract: Contract) -> StoredImage:
    """Store an image as if it were a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return store_image(buffer.getvalue(), contract.smaller, _plain_window(contract), contract.channel)


def _of_stored(frame: int | None, stored: StoredImage | str, contract: Contract) -> Slice:
    if isinstance(stored, str):
        return Slice(frame, error=stored)
    try:
        with errors_as_bad_image():
            head, thumbs = head_and_thumbnails(stored.pixels)
            return Slice(frame, contract.pixels(stored, head), unlike=bool(are_blank(thumbs[None])[0]))
    except BadImage as error:
        return Slice(frame, error=str(error))
