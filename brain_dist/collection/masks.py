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

from brain_dist.collection.decoding import IMAGE_SUFFIXES, BadImage, decode_image
from brain_dist.collection.recipe_keys import MaskFiles
from brain_dist.collection.recipes import RecipePart
from brain_dist.collection.records import Record, stem
from brain_dist.common.text import printable
from brain_dist.errors import UserError

Mask = npt.NDArray[np.bool_]


def is_mask(path: str, masks: MaskFiles | None) -> bool:
    """Whether a file is a mask beside an image, by its name."""
    return masks is not None and masks.folder is None and stem(path).endswith(masks.suffix)


def with_masks(
    files: list[Record], part: RecipePart, classes: tuple[str, ...], source: Path, warnings: list[str]
) -> list[Record]:
    """The image files with their masks and, if the recipe says so, the classes that these give.

    An image whose mask is empty is left out if the recipe names no class for it.

    Raises:
        UserError: masks give the classes, and an image has none; or a folder cannot be read.
    """
    masks = part.masks
    assert masks is not None
    names: dict[str, dict[str, str]] = {}
    result: list[Record] = []
    empty = 0
    for file in files:
        folder = posixpath.dirname(file.path) if masks.folder is None else posixpath.join(part.root, masks.folder)
        if folder not in names:
            names[folder] = _images_by_stem(source, folder)
        mask = names[folder].get(stem(posixpath.basename(file.path)) + masks.suffix)
        if mask is None:
            if masks.lesion:
                raise UserError(
                    f"{printable(file.path)} has no mask {printable(folder)}/…{masks.suffix}, and the recipe takes its "
                    "class from it; add the mask, or leave the image out with `exclude`"
                )
            result.append(file)
            continue
        file, has_lesion = _with_mask(file, posixpath.normpath(posixpath.join(folder, mask)), source)
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


def _images_by_stem(source: Path, folder: str) -> dict[str, str]:
    try:
        names = sorted(path.name for path in (source / folder).iterdir())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{source / folder} cannot be read ({error.strerror})") from None
    return {stem(name): name for name in names if name.lower().endswith(IMAGE_SUFFIXES)}


def _with_mask(file: Record, mask: str, source: Path) -> tuple[Record, bool]:
    """The file with its mask, and whether that shows a lesion."""
    try:
        data = (source / mask).read_bytes()
        pixels = read_mask(data)
    except OSError as error:
        return replace(file, header_error=f"its mask {printable(mask)} cannot be read ({error.strerror})"), False
    except BadImage as error:
        return replace(file, header_error=f"its mask {printable(mask)} {error}"), False
    return replace(file, mask=mask, mask_crc32=zlib.crc32(data)), bool(pixels.any())


def read_mask(data: bytes) -> Mask:
    """Where an encoded mask is not 0, bool [H, W]; where it is 128 or more if it is a JPEG, whose 0 is not exact.

    Raises:
        BadImage: ``data`` is not exactly one complete image of a usable size.
    """
    upright = decode_image(data)[1]
    values = np.asarray(upright)
    if values.ndim == 3:
        colours = [number for number, name in enumerate(upright.getbands()) if name != "A"]
        values = values[:, :, colours].max(axis=2)
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
