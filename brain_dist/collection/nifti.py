"""NIfTI volumes: slices across one axis of the volume in RAS+ order, in radiological display."""

from __future__ import annotations

import gzip
import math
from typing import Any, BinaryIO

import numpy as np

from brain_dist.collection.decoding import BadImage, check_numeric, check_size, to_8_bit
from brain_dist.collection.pixels import Contents, SlicePixels
from brain_dist.collection.recipe_keys import SliceRange
from brain_dist.collection.recipes import RecipePart

SUFFIXES = (".nii", ".nii.gz")
MAX_VOXELS = 2**28  # 1 GiB of float32
_MAX_EXTRA = 2**24  # bytes before the voxels (header and extensions), and bytes behind them
_PLANES = ("sagittal", "coronal", "axial")  # perpendicular to the axes of a volume in RAS+ order
_GZIP_MAGIC = b"\x1f\x8b"


def read_contents(file: BinaryIO, part: RecipePart) -> Contents:
    """The numbers of the slices in the recipe's range."""
    slices = part.slices or SliceRange()
    image, _ = _open_volume(file, slices)
    shape = np.array(image.shape)[_stored_axes(image)]  # in RAS+ order
    check_size(*np.delete(shape, slices.axis).tolist())
    length = int(shape[slices.axis])
    first = min(round(slices.from_ * length), length - 1)
    end = max(round(slices.to * length), first + 1)
    attributes = {"plane": _PLANES[slices.axis]}
    return Contents([(n, {**attributes, "slice": n}) for n in range(first, end, slices.step)], volume=True)


def read_extent(file: BinaryIO, part: RecipePart) -> tuple[int, int]:
    """The number of voxels, and the number of slices, as the header states them."""
    slices = part.slices or SliceRange()
    image, _ = _open_volume(file, slices)
    shape = np.array(image.shape)[_stored_axes(image)]
    return math.prod(image.shape), int(shape[slices.axis])


def read_pixels(file: BinaryIO, part: RecipePart) -> SlicePixels:
    """The gray pixels of any slice, after reading the volume once."""
    import nibabel

    slices = part.slices or SliceRange()
    image, stream = _open_volume(file, slices)
    stored = image.dataobj if math.prod(image.shape[3:]) == 1 else image.dataobj[..., slices.volume]
    values = np.asarray(stored, dtype=np.float32).reshape(image.shape[:3])
    while stream.read(2**16):
        pass  # to the end, where gzip compares its checksum
    missing = np.isnan(values)
    if missing.any() and not missing.all():  # outside the head
        values = np.where(missing, np.nanmin(values), values)
    ras = nibabel.apply_orientation(values, nibabel.io_orientation(image.affine))
    axis, dtype = slices.axis, str(image.get_data_dtype())

    def pixels(number: int | None) -> tuple[np.ndarray, str]:
        assert number is not None
        # Radiological display: rows run from superior (axial: anterior) down, columns from the patient's right
        # (sagittal: anterior) to the left (posterior)
        return to_8_bit(np.take(ras, number, axis)[::-1, ::-1].T, part.window), dtype

    return pixels


def _open_volume(file: BinaryIO, slices: SliceRange) -> tuple[Any, Any]:
    """The volume, a NIfTI-1 or NIfTI-2 image whose header is checked, and the stream of its decompressed bytes."""
    import nibabel

    compressed = file.peek(2)[:2] == _GZIP_MAGIC  # type: ignore[attr-defined]
    stream: Any = _BoundedGzip(fileobj=file) if compressed else file
    header_size = stream.read(4)
    stream.seek(0)
    kinds = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}
    kind = kinds.get(int.from_bytes(header_size, "little")) or kinds.get(int.from_bytes(header_size, "big"))
    if kind is None:
        raise BadImage("is not a NIfTI file")
    image = kind.from_stream(stream)
    shape = image.shape
    volumes = math.prod(shape[3:4])
    if len(shape) < 3 or any(length != 1 for length in shape[4:]):
        raise BadImage(f"contains {' x '.join(map(str, shape))} values; expected one volume of three dimensions")
    if volumes > 1 and slices.volume is None:
        raise BadImage(
            f"contains {volumes} volumes; choose one with `slices: {{volume: 0}}` in a recipe, or save it alone"
        )
    if (slices.volume or 0) >= volumes:
        raise BadImage(f"contains {volumes} volumes, but the recipe chooses volume {slices.volume}, counted from 0")
    if math.prod(shape[:3]) > MAX_VOXELS:
        raise BadImage(f"is {' x '.join(map(str, shape[:3]))} voxels, more than {MAX_VOXELS:,} in all")
    dtype = image.get_data_dtype()
    check_numeric(dtype)
    proxy: Any = image.dataobj
    offset = int(proxy.offset)
    if offset > _MAX_EXTRA:
        raise BadImage(f"has its voxels at byte {offset:,}, more than {_MAX_EXTRA:,}")
    if compressed:
        stream.limit = offset + math.prod(shape) * dtype.itemsize + _MAX_EXTRA
    _stored_axes(image)  # raises if the orientation is undefined
    return image, stream


class _BoundedGzip(gzip.GzipFile):
    """A gzip file that may have ``limit`` decompressed bytes: first those of the header, later those of the volume."""

    limit = _MAX_EXTRA

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0 or self.tell() + size > self.limit + 2**16:
            raise BadImage("inflates to much more than its volume (decompression bomb)")
        return super().read(size)


def _stored_axes(image: Any) -> np.ndarray:
    """[3] the stored axis that runs along each axis of RAS+ order."""
    import nibabel

    axes = nibabel.io_orientation(image.affine)[:, 0]
    if not np.array_equal(np.sort(axes), (0, 1, 2)):
        raise BadImage("has an affine without a defined orientation")
    return np.argsort(axes)
