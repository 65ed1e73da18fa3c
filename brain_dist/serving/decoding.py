"""A file of a request → the pixels that the network sees, after its header was compared with the limits."""

from __future__ import annotations

import io
import warnings

from brain_dist.collection import dicom, nifti
from brain_dist.collection.decoding import FORMATS, BadImage
from brain_dist.collection.recipe_keys import SliceRange
from brain_dist.collection.recipes import RecipePart
from brain_dist.collection.slicefiles import errors_as_bad_image, file_of
from brain_dist.prediction.reading import Choose, Slice, read_slices
from brain_dist.serving.problems import Problem
from brain_dist.serving.settings import Settings
from brain_dist.stream.contract import Contract

_MARGIN = 2**22  # bytes that a compressed DICOM file may have besides its pixels
_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
           b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")  # fmt: skip


def slices_of(data: bytes, contract: Contract, choose: Choose, settings: Settings) -> list[Slice]:
    """The slices of a file, by its content alone.

    Args:
        data: bytes of the file.
        contract: the preprocessing.
        choose: which of several slices are wanted.
        settings: the limits.

    Raises:
        Problem: the file is of an unknown kind, too large, or damaged.
    """
    kind = kind_of(data)
    if kind is None:
        raise Problem("unsupported", "the file is not an image, DICOM or NIfTI file")
    try:
        with errors_as_bad_image():
            pixels, frames = _extent(data, kind, contract)
    except BadImage as error:
        raise Problem("unreadable", f"the file {error}") from None
    if frames > settings.max_frames:
        raise Problem("too-large", f"the file has {frames:,} slices, more than {settings.max_frames:,}")
    if pixels > settings.max_pixels:
        raise Problem(
            "too-large", f"the file has {pixels / 1e6:,.1f} million pixels, more than {settings.max_pixels / 1e6:g}"
        )
    if kind == "dicom" and len(data) > 8 * pixels + _MARGIN:  # run lengths could decompress to 64 times as much
        raise Problem("unreadable", f"the file has {len(data):,} bytes for {pixels:,} pixels")
    slices = read_slices(data, ".nii" if kind == "nifti" else "", contract, choose)
    if all(each.pixels is None for each in slices):
        raise Problem("unreadable", f"the file {slices[0].error.replace('--slices', '`slices`')}")
    return slices


def kind_of(data: bytes) -> str | None:
    """What a file is by its first bytes: image, dicom, nifti, or None for anything else."""
    if data[128:132] == b"DICM":
        return "dicom"
    if data[344:348] in (b"n+1\0", b"ni1\0") or data[4:8] == b"n+2\0" or data.startswith(b"\x1f\x8b"):
        return "nifti"
    is_image = data.startswith(_STARTS) or (data.startswith(b"RIFF") and data[8:12] == b"WEBP")
    return "image" if is_image else None


def _extent(data: bytes, kind: str, contract: Contract) -> tuple[int, int]:
    """The number of pixels of all slices together, and the number of slices, as the header states them."""
    if kind == "dicom":
        return dicom.read_extent(file_of(data))
    if kind == "nifti":
        return nifti.read_extent(file_of(data), RecipePart(format="nifti", slices=SliceRange(axis=contract.slice_axis)))
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        return 2**31, 1  # it has more than Pillow's own limit
    except Image.UnidentifiedImageError:
        raise BadImage("cannot be decoded (its header is damaged)") from None
    return image.width * image.height, 1
