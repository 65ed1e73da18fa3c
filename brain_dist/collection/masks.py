"""Masks of lesions: which file is whose mask, its pixels, and the boxes around its lesions."""

from __future__ import annotations

import io
import posixpath
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from brain_dist.collection.decoding import (
    IMAGE_SUFFIXES,
    WIDE_MODES,
    BadImage,
    check_file_size,
    decode_image,
    on_black,
)
from brain_dist.collection.recipes import RecipePart
from brain_dist.collection.records import Record, stem
from brain_dist.collection.slicefiles import errors_as_bad_image
from brain_dist.collection.spellings import composed
from brain_dist.common.text import printable
from brain_dist.errors import UserError

Mask = npt.NDArray[np.bool_]


def is_mask(path: str, part: RecipePart) -> bool:
    """Whether a file is a mask by its name, and by its folder if masks have one of their own."""
    if part.masks is None or not stem(path).endswith(part.masks.suffix):
        return False
    return part.masks.folder is None or (posixpath.dirname(path) or ".") == _folder(part)


def _folder(part: RecipePart) -> str:
    """The folder that masks have of their own, relative to the source."""
    assert part.masks is not None
    return posixpath.normpath(posixpath.join(part.root, part.masks.folder or "."))


def with_masks(
    files: list[Record], part: RecipePart, classes: tuple[str, ...], source: Path, warnings: list[str]
) -> list[Record]:
    """The image files with their masks and, if the recipe says so, the classes that these give.

    An image whose mask is empty is left out if the recipe names no class for it. Images that share a mask are a
    warning, and so are masks of no image at all.

    Raises:
        UserError: masks give the classes, and an image has none; two masks fit an image, or a mask fits images of two
            classes, splits or patients; or a folder cannot be read.
    """
    masks = part.masks
    assert masks is not None
    result: list[Record] = []
    empty = 0
    places = _places_of_masks(files, part, source, warnings)
    for file, place in zip(files, places, strict=True):
        if place is None:
            result.append(file)
            continue
        file, has_lesion = _with_mask(file, place, source)
        if masks.lesion and file.header_error is None:
            name = masks.lesion if has_lesion else masks.empty
            if name is None:
                empty += 1
                continue
            empty += not has_lesion
            file = replace(file, label=classes.index(name))
        result.append(file)
    if empty:
        what = f"are labelled {masks.empty}" if masks.empty else "are left out"
        warnings.append(
            f"{printable(part.root)}: {empty} images with an empty mask {what}: a slice without a tumour is not a slice"
            " of a healthy person"
        )
    if masks.lesion and not result:
        raise UserError(f"{source / part.root}: the masks of all {empty} images are empty; check masks.suffix")
    return result


def _places_of_masks(files: list[Record], part: RecipePart, source: Path, warnings: list[str]) -> list[str | None]:
    """Path of each file's mask, relative to the source; None if it has none."""
    masks = part.masks
    assert masks is not None
    names: dict[str, dict[str, list[str]]] = {}  # folder → stem → names
    first: dict[str, Record] = {}  # mask → the first image that it fits
    places: list[str | None] = []
    for file in files:
        folder = posixpath.dirname(file.path) if masks.folder is None else _folder(part)
        if folder not in names:
            names[folder] = _images_by_stem(source, folder)
        fitting = names[folder].get(composed(stem(posixpath.basename(file.path)) + masks.suffix), [])
        if len(fitting) > 1:
            both = " and ".join(printable(posixpath.join(folder, name)) for name in fitting[:2])
            raise UserError(f"{both} would both be the mask of {printable(file.path)}; keep one of them")
        if not fitting and masks.lesion:
            raise UserError(
                f"{printable(file.path)} has no mask {printable(folder)}/…{masks.suffix}, and the recipe takes its "
                "class from it; add the mask, or leave the image out with `exclude`"
            )
        place = posixpath.normpath(posixpath.join(folder, fitting[0])) if fitting else None
        places.append(place)
        if place is not None and _differ(other := first.setdefault(place, file), file):
            raise UserError(
                f"{printable(place)} would be the mask of {printable(other.path)} and of {printable(file.path)}, which "
                "are of different classes, splits or patients; rename the files, or describe each folder in a part of "
                "its own with its masks"
            )
    shared = len(files) - places.count(None) - len(first)
    if shared:
        warnings.append(f"{printable(part.root)}: {shared} images share the mask of another image of the same name")
    if files and not first:
        name = printable(posixpath.join(folder, stem(posixpath.basename(file.path)) + masks.suffix))
        warnings.append(f"{printable(part.root)}: no image has a mask: {printable(file.path)} has no {name}.png")
    return places


def _differ(one: Record, other: Record) -> bool:
    """Whether two images cannot show the same slice, as two sequences of a scan may."""
    is_other_patient = None not in (one.patient, other.patient) and one.patient != other.patient
    return is_other_patient or (one.label, one.published) != (other.label, other.published)


def _images_by_stem(source: Path, folder: str) -> dict[str, list[str]]:
    """Stem → names of the image files in a folder, sorted."""
    try:
        names = sorted(path.name for path in (source / folder).iterdir())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{source / folder} cannot be read ({error.strerror})") from None
    by_stem: dict[str, list[str]] = {}
    for name in names:
        if name.lower().endswith(IMAGE_SUFFIXES):
            by_stem.setdefault(composed(stem(name)), []).append(name)
    return by_stem


def _with_mask(file: Record, mask: str, source: Path) -> tuple[Record, bool]:
    """The file with its mask, and whether that shows a lesion."""
    try:
        pixels, crc32 = load_mask(source / mask)
    except BadImage as error:
        return replace(file, header_error=f"its mask {printable(mask)} {error}"), False
    return replace(file, mask=mask, mask_crc32=crc32), bool(pixels.any())


def load_mask(path: Path) -> tuple[Mask, int]:
    """The mask in a file, see :func:`read_mask`, and the checksum of the file.

    Raises:
        BadImage: the file cannot be read, or as :func:`read_mask`.
    """
    with errors_as_bad_image():
        if not path.is_file():  # opening a named pipe would wait for its writer
            raise BadImage("is not a file, or is a broken link")
        check_file_size(path.stat().st_size)
        data = path.read_bytes()
        return read_mask(data), zlib.crc32(data)


def read_mask(data: bytes) -> Mask:
    """Where an encoded mask is not black, bool [H, W]; where it is 128 or more if it is a JPEG, whose 0 is not exact.

    What is transparent is black.

    Raises:
        BadImage: ``data`` is not exactly one complete image of a usable size.
    """
    image = decode_image(data)[1]
    is_plain = image.mode in ("1", "L", "RGB", *WIDE_MODES) and "transparency" not in image.info
    values = np.asarray(image if is_plain else on_black(image))
    if values.ndim == 3:
        values = values.max(axis=2)
    return values > (127 if data.startswith(b"\xff\xd8") else 0)


def fit_mask(mask: Mask, width: int, height: int, box: tuple[float, float, float, float] | None = None) -> Mask:
    """Resize a mask: a pixel belongs to the lesion if half of its area does.

    A lesion that covers no pixel so far keeps the pixels that it covers most, so that it does not vanish.

    Args:
        mask: bool [H, W].
        width: of the result.
        height: of the result.
        box: left, top, right, bottom of the part that is resized, in pixels of ``mask``; None: all of it.

    Returns:
        bool [height, width].
    """
    if mask.shape == (height, width) and box is None:
        return mask
    image = Image.fromarray(mask.astype(np.float32))
    share = np.asarray(image.resize((width, height), Image.Resampling.BOX, box=box))
    return (share > 0) & (share >= min(0.5, float(share.max())))


def encode_mask(mask: Mask) -> bytes:
    """A PNG of one bit a pixel."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def mask_attributes(mask: Mask) -> dict[str, Any]:
    """What the index says of a mask bool [H, W].

    Returns:
        ``boxes``: left, top, right, bottom of each connected region (with its diagonal neighbours), the largest first,
        and ``lesion_area``: the lesions' share of the image. All are fractions of the image.
    """
    height, width = mask.shape
    regions = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[2][1:]  # 0 is the background
    order = np.lexsort((regions[:, 0], regions[:, 1], -regions[:, 4]))  # the largest first, then from the top
    boxes = [
        [left / width, top / height, (left + across) / width, (top + down) / height]
        for left, top, across, down, _ in regions[order].tolist()
    ]
    return {
        "boxes": [[round(value, 6) for value in box] for box in boxes],
        "lesion_area": round(float(mask.mean()), 9),
    }
