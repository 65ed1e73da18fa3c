"""Slices inside MATLAB, DICOM and NIfTI files: what a file's header tells, and its slices as 8-bit gray pictures.

Whatever is wrong with such a file is a :class:`BadImage` that says why.
"""

from __future__ import annotations

import gzip
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from brain_dist.collection import dicom
from brain_dist.collection.pixels import (
    IMAGE_SUFFIXES,
    BadImage,
    Examined,
    check_size,
    examine,
    examine_values,
    to_8_bit,
)
from brain_dist.collection.recipes import RecipePart
from brain_dist.errors import UserError

SUFFIXES = {
    "images": tuple(sorted(IMAGE_SUFFIXES)),
    "mat": (".mat",),
    "dicom": (".dcm",),
    "nifti": (".nii", ".nii.gz"),
}
MAT_LABELS = {1: "meningioma", 2: "glioma", 3: "pituitary"}  # of cjdata.label
Pixels = Callable[[int | None], tuple[np.ndarray, str]]  # slice number → uint8 [H, W], type of the stored values
PLANES = ("sagittal", "coronal", "axial")  # across the axes of a volume in RAS+ order
MAX_VOXELS = 2**28  # 1 GiB of float32


@dataclass(frozen=True)
class Contents:
    """What a file's header tells: its slices (number, or None where it is but one; facts), class name and patient.

    ``volume``: the slices are of one scan, so that they belong together even where no patient is known.
    """

    slices: list[tuple[int | None, dict[str, Any]]]
    label: str | None = None
    patient: str | None = None
    volume: bool = False


def read_contents(path: Path, part: RecipePart) -> Contents:
    """The slices that a file holds, without their pixels; :class:`BadImage` where its header cannot be read."""
    if part.format == "images":
        return Contents([(None, {})])  # not opened: whatever it is, decoding will tell
    with _opened(path) as file:
        if part.format == "mat":
            return _mat_contents(file)
        if part.format == "nifti":
            return _nifti_contents(file, part)
        frames, patient = dicom.read_header(file)
        return Contents(frames, patient=patient, volume=len(frames) > 1)


def examine_file(
    path: Path, part: RecipePart, frames: Sequence[int | None], max_side: int | None = None
) -> Iterator[Examined | str]:
    """For each asked slice of a file what was found of it, or why it is bad; the file is read once."""
    try:
        with _opened(path) as file:
            if part.format == "images":
                data = file.read()
            else:
                reader = {"mat": _mat_pixels, "dicom": dicom.read_pixels, "nifti": _nifti_pixels}[part.format]
                pixels = reader(file, part)
        if part.format == "images":
            yield examine(data, max_side, part.window)
            return
    except BadImage as error:
        yield from [str(error)] * len(frames)
        return
    for frame in frames:
        try:
            with _damage():
                gray, mode = pixels(frame)
            yield examine_values(gray, mode, max_side)
        except BadImage as error:
            yield str(error)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file to read; its contents' faults and the disk's become :class:`BadImage`."""
    with _damage():
        if not path.is_file():
            raise BadImage("is no file, or a link that leads nowhere")
        with path.open("rb") as file:
            if not file.peek(1):
                raise BadImage("is empty (0 bytes)")
            yield file


@contextmanager
def _damage() -> Iterator[None]:
    """Turn what a library raises on damaged bytes, exceptions of all kinds, into :class:`BadImage`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the libraries forgive is not the user's to mend
            yield
    except BadImage:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise BadImage(f"cannot be read ({error.strerror})") from error
        lines = str(error).strip().splitlines()
        raise BadImage(f"cannot be decoded ({lines[0] if lines else type(error).__name__})") from error


def _check_numbers(dtype: np.dtype) -> None:
    if dtype.kind not in "biuf":
        raise BadImage(f"holds values of type {dtype}, no plain numbers")


# MATLAB v7.3, as Cheng's collection is published: HDF5 with one struct "cjdata" a file


@contextmanager
def _cjdata(file: BinaryIO) -> Iterator[Any]:
    import h5py

    start = file.read(520)
    file.seek(0)
    if b"\x89HDF\r\n\x1a\n" not in (start[512:], start[:8]):  # MATLAB puts 512 bytes of its own before HDF5's
        raise BadImage("is no MATLAB v7.3 file (HDF5)")
    with h5py.File(file, "r") as content:
        data = content.get("cjdata", {})
        lacking = [name for name in ("image", "label", "PID") if name not in data]
        if lacking:
            raise BadImage(f"holds no struct cjdata with {', '.join(lacking)}")
        yield data


def _mat_contents(file: BinaryIO) -> Contents:
    with _cjdata(file) as data:
        code = float(np.asarray(data["label"]).item())
        letters = np.asarray(data["PID"]).astype("<u2").tobytes()
    if code not in MAT_LABELS:
        raise BadImage(f"has label {code:g}; known are {', '.join(f'{k} ({v})' for k, v in MAT_LABELS.items())}")
    name = letters.decode("utf-16-le", "replace").strip("\0 ")
    # a letter behind the number tells the scans of one person apart: MR024780B, MR024780D
    patient = name[:-1] if name[-1:].isalpha() and name[:-1] else name
    return Contents([(None, {"pid": name} if name else {})], MAT_LABELS[int(code)], patient or None)


def _mat_pixels(file: BinaryIO, part: RecipePart) -> Pixels:
    with _cjdata(file) as data:
        stored = data["image"]
        if stored.ndim != 2:
            raise BadImage(f"holds an image of {stored.ndim} dimensions")
        _check_numbers(stored.dtype)
        check_size(*stored.shape)
        values = np.asarray(stored).T  # MATLAB stores columns
    return lambda frame: (to_8_bit(values, part.window), str(values.dtype))


def read_folds(part: RecipePart, source: Path) -> dict[str, int]:
    """A part's published folds, file stem → fold from 1 on; empty where the recipe names none.

    ``cvind.mat`` holds a vector ``cvind`` whose i-th number is the fold of the file ``i.mat``.
    """
    if part.folds is None:
        return {}
    import h5py

    path = source / part.root / part.folds
    try:
        with h5py.File(path, "r") as file:
            numbers = np.asarray(file[path.stem]).ravel().astype(int).tolist()
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the published folds {path} cannot be read ({error}); mend it, or remove `folds` from the recipe"
        ) from None
    return {str(number): fold for number, fold in enumerate(numbers, 1)}


# NIfTI


def _nifti(file: BinaryIO) -> tuple[Any, Any, np.ndarray]:
    """(image, stream of its bytes, [3] the stored axis that runs along each axis of RAS+ order)."""
    import nibabel

    stream: Any = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file  # type: ignore[attr-defined]
    size = stream.read(4)
    stream.seek(0)
    kinds = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}
    kind = kinds.get(int.from_bytes(size, "little")) or kinds.get(int.from_bytes(size, "big"))
    if kind is None:
        raise BadImage("is no NIfTI file")
    image = kind.from_stream(stream)
    shape = image.shape
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        raise BadImage(f"holds values in {' x '.join(map(str, shape))}; one volume of three dimensions is expected")
    if math.prod(shape) > MAX_VOXELS:
        raise BadImage(f"is {' x '.join(map(str, shape[:3]))} voxels, more than {MAX_VOXELS:,} in all")
    _check_numbers(image.get_data_dtype())
    along = nibabel.io_orientation(image.affine)[:, 0]
    if not np.array_equal(np.sort(along), (0, 1, 2)):
        raise BadImage("has an affine that gives no orientation")
    return image, stream, np.argsort(along)


def _nifti_contents(file: BinaryIO, part: RecipePart) -> Contents:
    image, _, stored = _nifti(file)
    axis, step = part.slices["axis"], part.slices["step"]
    length = image.shape[stored[axis]]
    check_size(*(image.shape[stored[other]] for other in (0, 1, 2) if other != axis))
    first = min(round(part.slices["from"] * length), length - 1)
    chosen = range(first, max(round(part.slices["to"] * length), first + 1), step)
    return Contents([(number, {"plane": PLANES[axis], "slice": number}) for number in chosen], volume=True)


def _nifti_pixels(file: BinaryIO, part: RecipePart) -> Pixels:
    import nibabel

    image, stream, _ = _nifti(file)
    values = np.asarray(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
    while stream.read(2**20):
        pass  # to its end, where gzip's checksum is compared
    ras = nibabel.apply_orientation(values, nibabel.io_orientation(image.affine))
    axis, dtype = part.slices["axis"], str(image.get_data_dtype())

    def pixels(frame: int | None) -> tuple[np.ndarray, str]:
        assert frame is not None
        # Radiological display: rows run from superior (axial: anterior) down, columns from the patient's right
        # (sagittal: anterior) to the left (posterior)
        return to_8_bit(np.take(ras, frame, axis)[::-1, ::-1].T, part.window), dtype

    return pixels
